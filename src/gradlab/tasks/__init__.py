"""Where sequences come from: one data set or synthetic task a file, and ``base.py`` the contract.

A new task needs its file here and a yaml in ``conf/task``; it is built from the yaml's
``_target_``, so the list below is a convenience for notebooks and not a registry.
"""

from gradlab.tasks.adding import Adding
from gradlab.tasks.base import Baseline, Batch, Split, Task
from gradlab.tasks.copying import Copying
from gradlab.tasks.dates import Dates
from gradlab.tasks.digits import Digits
from gradlab.tasks.sunspots import Sunspots
from gradlab.tasks.temporal_order import TemporalOrder
from gradlab.tasks.text import Text

__all__ = [
    "Adding",
    "Baseline",
    "Batch",
    "Copying",
    "Dates",
    "Digits",
    "Split",
    "Sunspots",
    "Task",
    "TemporalOrder",
    "Text",
]
