"""What a model is trained and judged on: one file per task, imported when it is asked for.

To add a task, write ``tasks/NAME.py`` with a class `Task` derived from `tasks.base.Base`; nothing
else changes. What several tasks share is in ``tasks/common``.
"""
