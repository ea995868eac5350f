"""The agent: decides, for each input, where it is answered. No torch, no cloud code.

In another program, without any server::

    from edgemux.edge import EdgeConfig, open_agent

    async with open_agent(EdgeConfig(bundle=Path("DIR"))) as agent:
        answers = await agent.infer({"image": images})

Several applications share the device: ``open_agents`` gives an agent for each, by name.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # why: edgemux.wire

from edgemux.edge.agent import Agent, Answer
from edgemux.edge.config import ApplicationSettings, EdgeConfig
from edgemux.edge.server import open_agent, open_agents

__all__ = ["Agent", "Answer", "ApplicationSettings", "EdgeConfig", "open_agent", "open_agents"]
