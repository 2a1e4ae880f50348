"""What a sweep asks of a run, beside its frozen config. No torch."""

import json
from dataclasses import asdict, dataclass, field

from onenet.identity import EvalSpec


@dataclass
class Request:
    evaluations: list[EvalSpec] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    threads: int = 1

    @staticmethod
    def parse(text: str) -> "Request":
        values = json.loads(text)
        values["evaluations"] = [EvalSpec(**spec) for spec in values["evaluations"]]
        return Request(**values)

    def dump(self) -> str:
        return json.dumps(asdict(self))
