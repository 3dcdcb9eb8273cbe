"""The embedded default task: questions about small schemas, answered in SQL and scored by execution in SQLite."""

from nptool.text_to_sql.examples import TASK, Example, Split, generate_examples
from nptool.text_to_sql.execution import execution_accuracy, execution_match

__all__ = ["TASK", "Example", "Split", "execution_accuracy", "execution_match", "generate_examples"]
