"""Document memories for a frozen causal LM, trained under a tail-risk constraint and judged from the log.

Importing the package is cheap; what needs torch is imported by the module that uses it.
"""

from __future__ import annotations

__version__ = "0.1.0"
