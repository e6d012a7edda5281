"""What comes over the whole host in a soak: outages, crashes, and engine calls that get stuck."""

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from tests.faults.engine import Act, Planned
from tests.soak.host import Host
from tests.soak.processes import RunnerWatch
from tests.soak.schedule import EngineFault, Upset, UpsetPlan

# By which the runner's log shows that it has met the outage.
_LOGGED = {"REFUSE": "Connection refused", "UNTRUSTED": "not trusted", "EXPIRED": "expired"}
_NEXT_OUTAGE_S = 1.0


class Agenda:
    """What is to be done later, by one thread: acts and their moments."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._entries, (time.monotonic() + seconds, next(self._numbers), act))

    def do_what_is_due(self) -> None:
        now = time.monotonic()
        while self._entries and self._entries[0][0] <= now:
            _, _, act = heapq.heappop(self._entries)
            act()

    def clear(self) -> None:
        self._entries.clear()


class Upsets:
    """Brings them about as they come up, and counts those that hit."""

    def __init__(
        self, plans: tuple[UpsetPlan, ...], host: Host, agenda: Agenda, watch: RunnerWatch
    ) -> None:
        self._plans = list(plans)
        self._host, self._agenda, self._watch = host, agenda, watch
        self._hits: Counter[str] = Counter()
        self._blocked: list[tuple[EngineFault, Planned]] = []
        self._is_outage = False

    def look(self, ended: int) -> None:
        """Bring about what comes after so many ended tasks, and let blocked calls go on."""
        while self._plans and self._plans[0].after_ended <= ended:
            plan = self._plans.pop(0)
            self._agenda.later(plan.delay_s, partial(self._begin, plan))
        for pair in [pair for pair in self._blocked if pair[1].has_happened]:
            self._blocked.remove(pair)
            self._agenda.later(pair[0].seconds, pair[1].release)
        for met in self._host.journal.folder.glob("*.met"):
            self._hits[f"journal: kill {met.name.split('.')[1]} commit"] += 1
            met.unlink()

    def cease(self) -> None:
        self._plans.clear()
        self._agenda.clear()
        self._host.calm()

    def break_call(self, fault: EngineFault, container: str = "") -> Planned:
        """Have a call of the engine go wrong, for one container if it is named."""
        planned = self._host.faults.plan(
            fault.call, fault.act, fault.when, message=fault.message, needs=container
        )
        if fault.act is Act.BLOCK:
            self._blocked.append((fault, planned))
        return planned

    def lift(self, planned: list[tuple[EngineFault, Planned]]) -> None:
        """Take back what has met no call: as long as it is planned, every call looks at it."""
        for pair in planned:
            pair[1].lift()
            if pair in self._blocked and not pair[1].has_happened:
                self._blocked.remove(pair)

    @property
    def hits(self) -> Counter[str]:
        """Count what has really hit, by kind."""
        counts = Counter(self._hits)
        for kind, number in self._host.proxy.counts.items():
            if kind != "refuse":  # counted where the runner has met it
                counts[f"network: {kind}"] += number
        for name, number in self._host.faults.counts.items():
            call, act, when = name.split()
            counts[f"engine: {act} {when} {call}"] += number
        return counts

    def _begin(self, plan: UpsetPlan) -> None:
        if plan.upset is Upset.KILL_RUNNER:
            self._watch.kill()
        elif plan.upset is Upset.TERM_RUNNER:
            self._watch.terminate()
        elif plan.upset is Upset.KILL_ORCHESTRATOR:
            self._kill_orchestrator(plan)
        elif plan.upset is Upset.JOURNAL:
            self._host.journal.kill("before" if plan.is_before else "after", plan.commit)
        elif plan.fault is not None:
            self.break_call(plan.fault)
        else:
            self._cut_off(plan)

    def _kill_orchestrator(self, plan: UpsetPlan) -> None:
        orchestrator = self._host.orchestrator
        if orchestrator.is_alive:
            self._hits[plan.upset.value] += 1
            orchestrator.kill()
            self._agenda.later(plan.seconds, orchestrator.start)

    def _cut_off(self, plan: UpsetPlan) -> None:
        """Refuse connections, or show a certificate that is no good, for a while."""
        if self._is_outage:
            self._agenda.later(_NEXT_OUTAGE_S, partial(self._cut_off, plan))
            return
        self._is_outage = True
        log_start = len(self._host.runner.whole_log)
        proxy, certificates = self._host.proxy, self._host.certificates
        if plan.upset is Upset.REFUSE:
            proxy.refuse()
        else:
            is_strange = plan.upset is Upset.UNTRUSTED
            proxy.present(certificates.untrusted if is_strange else certificates.expired)

        def end() -> None:
            logged = self._host.runner.whole_log[log_start:]
            self._hits[plan.upset.value] += _LOGGED[plan.upset.name] in logged
            proxy.present(certificates.trusted)
            proxy.accept()
            self._is_outage = False

        self._agenda.later(plan.seconds, end)
