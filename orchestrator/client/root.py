"""The commands for people: the module of each, and its line of help."""

COMMANDS = {
    "login": ("orchestrator.client.login:login", "Store an orchestrator's URL and a key."),
    "task": ("orchestrator.client.tasks:task", "Create, watch and manage tasks."),
    "node": ("orchestrator.client.nodes:node", "List, pause and remove nodes."),
    "key": ("orchestrator.client.keys:key", "Manage keys."),
    "token": ("orchestrator.client.keys:token", "Manage registration tokens."),
    "cleanup": ("orchestrator.client.system:cleanup", "Delete tasks that ended long ago."),
    "stats": ("orchestrator.client.system:stats", "Show numbers of nodes and tasks."),
    "audit": ("orchestrator.client.system:audit", "Show who used which key for what."),
    "health": ("orchestrator.client.system:health", "Show whether the orchestrator answers."),
    "completion": ("orchestrator.client.login:completion", "Print a shell's completion script."),
}
