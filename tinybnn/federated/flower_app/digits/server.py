"""The ServerApp, which runs beside the SuperLink."""

from typing import Any

from digits import task
from tinybnn.federated import flower

app: Any = flower.server_app(task.server, task.validation)
