"""The hub: points by month, records, positions.

Definitions here are frozen: never those of the models. The search path names the schema of the hub.
"""

from alembic import op

revision = "h001"
down_revision = None
branch_labels = ("hub",)
depends_on = None

TABLES = """
CREATE TABLE points (
    store_id uuid NOT NULL,
    sensor_id varchar COLLATE "C" NOT NULL,
    metric_name varchar COLLATE "C" NOT NULL,
    timestamp_us bigint NOT NULL,
    value double precision,
    value_text varchar,
    quality integer,
    metadata json,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (store_id, sensor_id, metric_name, timestamp_us)
) PARTITION BY RANGE (timestamp_us);

CREATE TABLE records (
    store_id uuid NOT NULL,
    record_id varchar COLLATE "C" NOT NULL,
    source varchar NOT NULL,
    data json NOT NULL,
    timestamp_us bigint NOT NULL,
    PRIMARY KEY (store_id, record_id)
);

CREATE TABLE positions (
    store_id uuid NOT NULL,
    epoch bigint NOT NULL,
    sink varchar COLLATE "C" NOT NULL,
    token varchar NOT NULL,
    ranges int8multirange NOT NULL DEFAULT '{}',
    points bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, epoch, sink)
);
"""

# 2000-01-01 and 2100-01-01: outside of these, wrong clocks would make thousands of partitions.
OTHER_TIMES = """
CREATE TABLE points_early PARTITION OF points FOR VALUES FROM (MINVALUE) TO (946684800000000);
CREATE TABLE points_late PARTITION OF points FOR VALUES FROM (4102444800000000) TO (MAXVALUE);
"""

# It runs as its owner, so that the role of a site needs no right to create tables. ATTACH, unlike CREATE TABLE ...
# PARTITION OF, does not wait for those who read and write the table. Another site may make the partition while this one
# waits for the lock: `to_regclass` would then answer from a cache that says that there is none.
MAKE_PARTITION = """
CREATE FUNCTION make_partition(moment_us bigint) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT AS $function$
DECLARE
    first timestamp := date_trunc('month', timestamp '1970-01-01' + moment_us * interval '1 microsecond');
    partition text := 'points_' || to_char(first, 'YYYY_MM');
    home text := current_schema();
BEGIN
    IF moment_us < 946684800000000 OR moment_us >= 4102444800000000
        OR to_regclass(format('%I.%I', home, partition)) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('holdfast hub ' || home, 0));
    IF EXISTS (SELECT FROM pg_tables WHERE schemaname = home AND tablename = partition) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I.%I (LIKE %I.points INCLUDING ALL)', home, partition, home);
    EXECUTE format(
        'ALTER TABLE %I.points ATTACH PARTITION %I.%I FOR VALUES FROM (%s) TO (%s)', home, home, partition,
        (extract(epoch FROM first) * 1000000)::bigint,
        (extract(epoch FROM first + interval '1 month') * 1000000)::bigint);
END
$function$;
"""


def upgrade() -> None:
    op.execute(TABLES)
    op.execute(OTHER_TIMES)
    op.execute(MAKE_PARTITION)


def downgrade() -> None:
    op.execute("DROP FUNCTION make_partition(bigint)")
    op.execute("DROP TABLE positions, records, points")
