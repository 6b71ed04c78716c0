"""Runs in, a W&B Report and a W&B Workspace of them together out.

All that knows W&B's forms is in :mod:`~gradlab.compare.report.build`, all that talks to W&B in
:mod:`~gradlab.compare.report.send`. What is shown is decided in
:mod:`~gradlab.compare.report.content`, without W&B.
"""

from gradlab.compare.report.send import NotSent as NotSent
from gradlab.compare.report.send import Published as Published
from gradlab.compare.report.send import Specification as Specification
from gradlab.compare.report.send import publish as publish
from gradlab.compare.report.send import specification as specification
