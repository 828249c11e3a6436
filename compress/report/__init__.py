"""Reports: pure functions of a front and a run's facts.

- :func:`compress.report.html.render`: ``report.html``
- :func:`compress.report.plot.front_svg`: ``front.svg``
- :func:`compress.report.terminal.front_table`, :func:`~compress.report.terminal.rows_table`: the terminal
- :func:`compress.report.markdown.front_markdown`: for CI
- :func:`compress.report.schema.front_schema`: the JSON Schema of ``front.json``
"""
