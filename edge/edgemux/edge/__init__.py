"""The agent: decides, for each input, where it is answered. No torch, no cloud code.

In another program, without any server::

    from edgemux.edge import EdgeConfig, open_agent

    async with open_agent(EdgeConfig(bundle=Path("DIR"))) as agent:
        answers = await agent.infer({"image": images})
"""

from edgemux.edge.agent import Agent, Answer
from edgemux.edge.config import EdgeConfig
from edgemux.edge.server import open_agent

__all__ = ["Agent", "Answer", "EdgeConfig", "open_agent"]
