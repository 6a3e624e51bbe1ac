"""The ClientApp, which runs on each SuperNode."""

from typing import Any

from digits import task
from tinybnn.federated import flower

app: Any = flower.client_app(task.client)
