"""Dashboards as code: pages of panels from ``dashboards/*.yaml``, drawn from the log for a file or a live app.

===========  ===========================================================================================================
module       does
===========  ===========================================================================================================
``spec``     what a page may hold: the schema of the YAML files, and reading them with clear errors
``view``     the runs that are looked at: their records, verdicts, metric histories and artifact rows
``draw``     one function per kind of panel: from its specification and a view to figures, tables and tiles
``alerts``   the warning rules of the pages, held against the log
``html``     one self-contained file
``app``      the live app (dash)
===========  ===========================================================================================================
"""
