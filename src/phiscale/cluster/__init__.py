"""The same work on many machines, by Ray: the trainings of a search, one training, predictions."""

from phiscale.cluster.prediction import RayPrediction
from phiscale.cluster.training import RayTraining
from phiscale.cluster.trials import RayBackend

__all__ = ["RayBackend", "RayPrediction", "RayTraining"]
