"""Commands of several tasks: all settings are looked at first, then the tasks run side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_keys
from sodp3d.envs import require_tasks
from sodp3d.envs.config import EnvConfig
from sodp3d.parallel.tasks import Job, at_once, run_side_by_side, share_of
from sodp3d.settings import CommonSettings

TaskCommand = Callable[[dict[str, Any], EnvConfig], None]


def for_each_task(
    config: dict[str, Any], tasks: Sequence[EnvConfig], function: TaskCommand, of_one: Sequence[str]
) -> None:
    """`function(config, task)` for every task: here for a single one, else side by side in processes of their own.

    of_one: options that name one folder. Raises InputError, before any work, where one is given with several tasks, or
    a task is unknown.
    """
    read_keys(CommonSettings, config)
    if len(tasks) == 1:
        function(config, tasks[0])
        return
    for key in of_one:
        if config[key]:
            raise InputError(f"{key}: one folder cannot hold {len(tasks)} tasks; leave it out or choose a single task.")
    require_tasks(tasks)
    together = at_once(config, len(tasks))
    part = share_of(config, together)
    run_side_by_side([Job(task.name, function, (part, task)) for task in tasks], together)
