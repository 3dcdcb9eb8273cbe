"""The embedded text-to-SQL task: questions about small schemas, SQL as answers, scored by execution in SQLite."""

from nptool.text_to_sql.examples import TASK, Example, Split, generate_examples
from nptool.text_to_sql.execution import execution_accuracy, execution_match

__all__ = ["TASK", "Example", "Split", "execution_accuracy", "execution_match", "generate_examples"]
