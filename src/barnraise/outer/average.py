"""Plain averaging, which three strategies and every buffer share: the mean of what the members hold."""

from barnraise.codec.grid import Float32


def average(theta: Float32, gradient: Float32) -> None:
    """Move theta to the mean of the members' parameters: ``theta <- theta - mean(theta - w_i)``, in place.

    Args:
        theta: float32[d], overwritten.
        gradient: float32[d], the mean of theta - w_i.
    """
    theta -= gradient
