from timellama_dist.evaluation.metrics import mean_errors


def test_overall_errors_count_every_data_set_alike() -> None:
    errors = [{"mse": 1.0, "mae": 0.5}, {"mse": 4.0, "mae": 2.0}, {"mse": 1.0, "mae": 0.5}]
    assert mean_errors(errors) == {"mse": 2.0, "mae": 1.0}


def test_of_one_data_set_they_are_its_own() -> None:
    errors = {"mse": 0.1 + 0.2, "mae": 1 / 3}
    assert mean_errors([errors]) == errors
