"""Dashboards as code: pages of panels from ``dashboards/*.yaml``, drawn from the log for a file or a live app.

==============  ========================================================================================================
module          does
==============  ========================================================================================================
``spec``        what a page may hold: the schema of the YAML files, and reading them with clear errors
``reference``   the same as tables, for ``dashboards/README.md``
``view``        the runs that are looked at: their records, verdicts, metric histories and artifact rows
``draw``        from a panel and a view to what it shows: `charts` of metrics, `points` of rows and runs, `tables`, all of them
                as `drawn` says and with the looks of `style`
``alerts``      the warning rules of the pages, held against the log
``html``        one self-contained file
``app``         the live app (dash), its pages made of `components`
==============  ========================================================================================================
"""
