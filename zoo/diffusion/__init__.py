"""Agent attention for diffusers pipelines; import it as ``attnzoo.diffusion``."""

try:
    import diffusers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "diffusers":
        raise
    raise ModuleNotFoundError(
        "attnzoo.diffusion needs diffusers: pip install 'attnzoo[diffusion]'", name="diffusers"
    ) from None

from .attention import AgentSelfAttention, attend, attend_agents
from .compare import Comparison, compare_agent_attention
from .estimate import Estimate, LevelEstimate, estimate_agent_attention
from .patch import Applied, apply_agent_attention, remove_agent_attention
from .schedule import AgentAttentionCallback
from .settings import PRESETS, AgentSettings, Stage, resolve_settings
from .tokens import TokenPlan, plan_tokens

__all__ = [
    "PRESETS",
    "AgentAttentionCallback",
    "AgentSelfAttention",
    "AgentSettings",
    "Applied",
    "Comparison",
    "Estimate",
    "LevelEstimate",
    "Stage",
    "TokenPlan",
    "apply_agent_attention",
    "attend",
    "attend_agents",
    "compare_agent_attention",
    "estimate_agent_attention",
    "plan_tokens",
    "remove_agent_attention",
    "resolve_settings",
]
