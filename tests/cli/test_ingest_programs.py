"""Every command of docs/ingest.md reads a small file of the same form as the program writes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command

pytestmark = pytest.mark.slow_on("duckdb")

GUIDE = Path(__file__).parents[2] / "docs" / "ingest.md"
COMMANDS = re.findall(r"^\| [^|]+ \| `holdfast ingest (\S+) (.*)` \|$", GUIDE.read_text(), flags=re.MULTILINE)

FILES: dict[str, tuple[str | bytes, list[tuple[str, str, str, Any]]]] = {
    "toa5.dat": (
        '"TOA5","st","CR1000","1","os","prog","9","T1"\r\n"TIMESTAMP","RECORD","AirT"\r\n"TS","RN","C"\r\n"","","Avg"\r\n'
        '"2026-01-01 00:00:00.5",1,-3.5\r\n"2026-01-01 00:00:01",2,"NAN"\r\n',
        [("TOWER", "AirT", "2026-01-01T07:00:00.500000Z", -3.5)],
    ),
    "hoboware.csv": (
        '\ufeff"Plot Title: tower"\n"#","Date Time, GMT-07:00","Temp, °F (LGR S/N: 1)","RH, %","Stopped"\n'
        "1,01/02/26 12:00:00 AM,31.5,80.25,\n2,01/02/26 01:00:00 PM,,,Logged\n",
        [
            ("U23", "humidity", "2026-01-02T07:00:00Z", 80.25),
            ("U23", "temperature", "2026-01-02T07:00:00Z", 31.5),
        ],
    ),
    "hobomobile.csv": (
        'Serial Number:1 --\n\nDate Time - GMT +05:00,"Temp, (*F)","RH, (%)",Host Connect,EOF,\n'
        "2026-01-01 08:00:00,54.25,85.10, , ,\n2026-01-01 08:01:00, , ,Logged, ,\n",
        [
            ("MX", "humidity", "2026-01-01T03:00:00Z", 85.1),
            ("MX", "temperature", "2026-01-01T03:00:00Z", 54.25),
        ],
    ),
    "usgs.rdb": (
        "# made by hand\n#\nagency_cd\tsite_no\tpeak_dt\tpeak_tm\tpeak_va\tgage_ht\n5s\t15s\t10d\t6s\t8s\t8s\n"
        "USGS\t01\t2020-03-22\t\t3640\t11.90\nUSGS\t01\t2021-07-01\t01:15\t4960\t\n",
        [
            ("01", "gage_ht", "2020-03-22T04:00:00Z", 11.9),
            ("01", "peak_va", "2020-03-22T04:00:00Z", 3640.0),
            ("01", "peak_va", "2021-07-01T05:15:00Z", 4960.0),
        ],
    ),
    "tmy3.csv": (
        '1,"SOMEWHERE",AK,-9.0,55.0,-160.0,7\nDate (MM/DD/YYYY),Time (HH:MM),GHI (W/m^2),GHI source,Dry-bulb (C)\n'
        "01/01/1997,01:00,0,E,3.0\n01/01/1997,24:00,-9900,?,-9900.0\n01/02/1997,24:00,5,E,-9900.0\n",
        [
            ("SITE", "Dry-bulb (C)", "1997-01-01T10:00:00Z", 3.0),
            ("SITE", "GHI (W/m^2)", "1997-01-01T10:00:00Z", 0.0),
            ("SITE", "GHI (W/m^2)", "1997-01-03T09:00:00Z", 5.0),
        ],
    ),
    "midc.txt": (
        "Unnamed: 0,Year,DOY,MST,Temp [deg C]\n0,2018,291,5,1.5\n0,2018,291,135,-7999.0\n0,2018,291,1000,2.5\n",
        [
            ("MIDC", "Temp [deg C]", "2018-10-18T07:05:00Z", 1.5),
            ("MIDC", "Temp [deg C]", "2018-10-18T17:00:00Z", 2.5),
        ],
    ),
    "pvgis.csv": (
        "Latitude:\t45.000\nLongitude:\t8.000\nElevation (m):\t250\nRadiation database:\tX\n\n\nSlope: 30 deg.\n"
        "Azimuth: 0 deg.\ntime,Gb(i),T2m\n20160101:0010,0.5,3.44\n\nGb(i): beam, direct\n\n\n\n\n\n\n\n\nthe end\n",
        [("ROOF", "Gb(i)", "2016-01-01T00:10:00Z", 0.5), ("ROOF", "T2m", "2016-01-01T00:10:00Z", 3.44)],
    ),
    "influx.csv": (
        "#datatype,string,long,dateTime:RFC3339,double,string,string\n#group,false,false,false,false,true,true\n"
        "#default,_result,,,,,\n,result,table,_time,_value,_field,host\n,,0,2026-01-01T00:00:00Z,1.5,load,web\n\n"
        "#datatype,string,long,string,dateTime:RFC3339,string,long\n"
        ",result,table,host,_time,_field,_value\n,,1,web,2026-01-01T00:00:00Z,used,7\n",
        [("web", "load", "2026-01-01T00:00:00Z", 1.5), ("web", "used", "2026-01-01T00:00:00Z", 7.0)],
    ),
    "statistics.tsv": (
        "statistic_id\tunit\tstart\tmin\tmax\tmean\tsum\tstate\nsensor.t\t°C\t25.10.2026 02:00\t18.5\t22.5\t20.5\n"
        "sensor.e\tkWh\t25.10.2026 02:00\t\t\t\t10.5\t100\nsensor.t\t°C\t25.10.2026 02:00\t18\n",
        [
            ("sensor.e", "state", "2026-10-25T00:00:00Z", 100.0),
            ("sensor.e", "sum", "2026-10-25T00:00:00Z", 10.5),
            ("sensor.t", "max", "2026-10-25T00:00:00Z", 22.5),
            ("sensor.t", "mean", "2026-10-25T00:00:00Z", 20.5),
            ("sensor.t", "min", "2026-10-25T00:00:00Z", 18.5),
            ("sensor.t", "min", "2026-10-25T01:00:00Z", 18.0),
        ],
    ),
    "history.csv": (
        "entity_id,state,last_changed\nsensor.t,unavailable,2026-01-01T00:00:00.000Z\n"
        "switch.p,off,2026-01-01T00:00:00.000Z\nsensor.t,21.5,2026-01-01T00:00:01.000Z\n",
        [
            ("sensor.t", "state", "2026-01-01T00:00:00Z", None),
            ("sensor.t", "state", "2026-01-01T00:00:01Z", 21.5),
            ("switch.p", "state", "2026-01-01T00:00:00Z", "off"),
        ],
    ),
    "entsoe.csv": (
        '"Time (CET/CEST)","Forecast [MW] - BZN|ES","Actual [MW] - BZN|ES"\n'
        '"29.10.2023 02:45 - 29.10.2023 02:00","1","2"\n"29.10.2023 02:00 - 29.10.2023 02:15","3","4"\n'
        '"29.10.2023 02:45 - 29.10.2023 03:00","5","-"\n'.replace('"-"', '""'),
        [
            ("ES", "forecast", "2023-10-29T00:45:00Z", 1.0),
            ("ES", "forecast", "2023-10-29T01:00:00Z", 3.0),
            ("ES", "forecast", "2023-10-29T01:45:00Z", 5.0),
            ("ES", "load", "2023-10-29T00:45:00Z", 2.0),
            ("ES", "load", "2023-10-29T01:00:00Z", 4.0),
        ],
    ),
    "grafana.csv": (
        '\ufeff"Time","Tank level"\r\n2026-01-01 10:00:00,41.5\r\n',
        [("TANK", "Tank level", "2026-01-01T09:00:00Z", 41.5)],
    ),
    "pandas.csv": (",p\n2026-01-01 00:00:00-07:00,1.5\n", [("FRAME", "p", "2026-01-01T07:00:00Z", 1.5)]),
    "excel.csv": (
        "sep=;\r\nZeit;Durchfluss\r\n01.01.2026 00:15;1.234,5\r\n",
        [("PUMP", "Durchfluss", "2026-01-01T00:15:00Z", 1234.5)],
    ),
    "mtr.csv": (
        "Mtr_Version,Start_Time,Ip,Loss%, ,Avg,\nMTR.0.87,1593667013,12.1.2.5,0.00,0,21.55\n".encode("utf-16"),
        [
            ("12.1.2.5", "Avg", "2020-07-02T05:16:53Z", 21.55),
            ("12.1.2.5", "Loss%", "2020-07-02T05:16:53Z", 0.0),
        ],
    ),
}  # fmt: skip


def test_every_command_of_the_guide_reads_the_file_of_its_program(on_store: Command, tmp_path: Path) -> None:
    assert sorted(FILES) == sorted(name for name, _ in COMMANDS)
    for name, options in COMMANDS:
        content, wanted = FILES[name]
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        said = on_store.json("ingest", tmp_path / name, *shlex.split(options))
        assert said["points"] == len(wanted), name
        assert said["overwritten"] == 0, name
    keys = ("sensor_id", "metric_name", "timestamp", "value")
    found = sorted(
        (tuple(point[key] for key in keys) for point in on_store.json("query", "*", "*")), key=repr
    )
    assert found == sorted((row for _, wanted in FILES.values() for row in wanted), key=repr)
