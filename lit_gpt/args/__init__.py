"""Arguments that several scripts share, as frozen dataclasses: each field is a command-line flag. Imports little."""

from typing import Literal

from lit_gpt.args.asking import AskArgs
from lit_gpt.args.cluster import ClusterArgs
from lit_gpt.args.data import PrepareArgs, SourceArgs
from lit_gpt.args.evaluation import EvalArgs, HelmArgs
from lit_gpt.args.methods import AdapterArgs, FullArgs, LoRAArgs, LoRARunArgs
from lit_gpt.args.planning import PlanArgs
from lit_gpt.args.sampling import ChatArgs, SamplingArgs
from lit_gpt.args.serving import ServeArgs
from lit_gpt.args.training import Optimizer, RunArgs, TrainArgs, ValidationArgs

Precision = Literal["32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8", "bnb.int8-training", "int8", "fp8"]

__all__ = [
    "AdapterArgs",
    "AskArgs",
    "ChatArgs",
    "ClusterArgs",
    "EvalArgs",
    "FullArgs",
    "LoRAArgs",
    "LoRARunArgs",
    "Optimizer",
]
__all__ += ["PlanArgs", "Precision", "PrepareArgs", "Quantization", "RunArgs", "SamplingArgs", "ServeArgs"]
__all__ += ["HelmArgs", "SourceArgs", "TrainArgs"]
__all__ += ["ValidationArgs"]
