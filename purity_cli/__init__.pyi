from purity_cli.metrics.feature_purity import FeaturePurity as FeaturePurity
from purity_cli.monitor import PurityMonitor as PurityMonitor
from purity_cli.scores import Scores as Scores
from purity_cli.scores import score as score
from purity_cli.taps import Taps as Taps

__version__: str
__all__ = ["FeaturePurity", "PurityMonitor", "Scores", "Taps", "__version__", "score"]
