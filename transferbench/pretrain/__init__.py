"""The engine that runs any pretraining method: recipes, the loop, checkpoints, run folders."""


class PretrainingFailed(Exception):
    """The training itself went wrong, e.g. the loss is no number; the input was not at fault.

    The command line prints its one sentence and exits with 1.
    """
