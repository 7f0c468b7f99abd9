"""${message.rstrip(".")}.

Revision ${up_revision}, after ${down_revision | comma,n}. Definitions here are frozen: never those of the models.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# The tables that it rewrites, by database, for the estimate of disk space. Without it, all tables are counted.
# REWRITES = {"timeseries": ("time_series_data",)}


def upgrade(database: str) -> None:
    """Run this revision on one database."""
    globals()[f"upgrade_{database}"]()


def downgrade(database: str) -> None:
    """Revert this revision on one database; raise before anything is lost."""
    globals()[f"downgrade_{database}"]()


% for database in ("metadata", "timeseries"):
def upgrade_${database}() -> None:
    ${context.get(f"{database}_upgrades") or "pass"}


def downgrade_${database}() -> None:
    ${context.get(f"{database}_downgrades") or "pass"}


% endfor
