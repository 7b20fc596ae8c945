"""Works, but imports torch as soon as it is loaded: every command, and each --help, waits for it."""

import torch

from difftool import NoiseSchedule, Schedule, hookimpl


class Heavy(NoiseSchedule, name="heavy"):
    """DDPM's betas (Ho et al., 2020), once more."""

    def build(self, timesteps: int) -> Schedule:
        return Schedule.from_betas(torch.linspace(0.1 / timesteps, 20.0 / timesteps, timesteps, dtype=torch.float64))


@hookimpl
def difftool_schedules() -> list[type[NoiseSchedule]]:
    return [Heavy]
