"""Writes the prompt of a data set: what the data are, and the task, in words."""


def task_prompt(description: str, *, context_len: int, horizon: int, frequency: str) -> str:
    """Write the prompt whose token embeddings the series are aligned to.

    Args:
        description: what the data are; it comes with the data set's manifest.
        context_len: steps of the past.
        horizon: steps to forecast.
        frequency: length of a step as a pandas offset alias, "h" or "15min".
    """
    task = (
        f"Task: forecast the next {horizon} steps from the previous {context_len} steps; "
        f"one step is {frequency}."
    )
    return f"{description.strip()} {task}"
