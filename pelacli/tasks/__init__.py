"""What a model is trained and judged on: one file per task, imported when it is asked for.

`pelacli.tasks.base.Base` says what a task must give and what it may. What several tasks share is in
``tasks/common``.
"""
