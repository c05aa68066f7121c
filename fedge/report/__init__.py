"""The report of a run: ``report.json`` read and checked, as a page to look at and as lines for a terminal.

Read in this order: ``read`` (the file, and careful access to what is in it), ``words`` (numbers as
people write them), ``measure`` (scores, each in its own unit), ``html`` and ``svg`` (safe markup),
``charts``, the sections, ``page``; ``reach`` and ``sweep`` compare runs.
"""

from fedge.report.page import write_html
from fedge.report.read import SCHEMA, load_report
from fedge.report.summary import summary_lines
from fedge.report.sweep import sweep_lines, write_sweep_html

__all__ = ["SCHEMA", "load_report", "summary_lines", "sweep_lines", "write_html", "write_sweep_html"]
