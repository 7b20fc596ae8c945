"""Works, but imports torch when it is loaded, which slows down every command and every --help."""

import torch

from difftool import NoiseSchedule, Schedule, hookimpl


class Heavy(NoiseSchedule, name="heavy"):
    """The linear schedule of DDPM (Ho et al., 2020) again."""

    def build(self, timesteps: int) -> Schedule:
        return Schedule.from_betas(torch.linspace(0.1 / timesteps, 20.0 / timesteps, timesteps, dtype=torch.float64))


@hookimpl
def difftool_schedules() -> list[type[NoiseSchedule]]:
    return [Heavy]
