from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.update import (
    ENDED,
    LIVE,
    MAX_STARTS,
    STATES,
    TABLE,
    Action,
    Event,
    ModelState,
    Placed,
    Update,
    desire,
    report,
    step,
)
from wire.orders import DesiredModel

OLD = Placed(target="models/intents/kitchen/1.0.0/x86-64", digest="sha256:" + "1" * 64)
NEW = DesiredModel(target="models/intents/kitchen/2.0.0/x86-64", digest="sha256:" + "2" * 64, rollout="r2")
UNDER_WAY = [s for s in STATES if s not in ENDED]


def in_state(state: str, starts: int = 0) -> ModelState:
    update = Update(target=NEW.target, digest=NEW.digest, rollout=NEW.rollout, state=state, starts=starts)
    candidate = Placed(target=NEW.target, digest=NEW.digest) if state in LIVE else None
    return ModelState(active=OLD, candidate=candidate, update=update)


def test_an_update_without_faults_walks_the_whole_path_and_replaces_the_active_model() -> None:
    model, actions = desire(ModelState(active=OLD), NEW)
    assert actions == (Action.VERIFY,)
    seen = []
    action = actions[0]
    while action is not Action.COMMIT:
        model, action = step(model, Event.DONE)
        seen.append(model.update.state)
    assert seen == ["fetching", "staging", "self-test", "switching", "probation", "committed"]
    assert (model.active.digest, model.previous, model.candidate) == (NEW.digest, OLD, None)


@pytest.mark.parametrize("state", UNDER_WAY)
@pytest.mark.parametrize(("event", "end"), [(Event.FAULT, "failed"), (Event.UNTRUSTED, "refused")])
def test_a_fault_in_any_state_ends_the_update_and_keeps_the_active_model(state, event, end) -> None:
    model, action = step(in_state(state), event, "why")
    assert (model.update.state, model.update.reason) == (end, "why")
    assert (model.active, model.candidate) == (OLD, None)
    assert action is (Action.ROLL_BACK if state in LIVE else Action.DROP)


@pytest.mark.parametrize("state", UNDER_WAY)
def test_the_table_says_for_every_state_what_a_fault_a_crash_and_a_stop_make_of_it(state) -> None:
    for event in (Event.DONE, Event.FAULT, Event.UNTRUSTED, Event.KILLED, Event.STOPPED):
        assert (state, event) in TABLE
    assert not [key for key in TABLE if key[0] in ENDED]


@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_device_may_be_restarted_as_often_as_somebody_likes(state) -> None:
    """Accident: an operator restarted a device four times within a probation, and the update failed."""
    model = in_state(state)
    for _ in range(10 * MAX_STARTS):
        model, action = step(model, Event.STOPPED)
        assert action not in (Action.DROP, Action.ROLL_BACK, Action.COMMIT)
    assert (model.update.starts, model.busy, model.active) == (0, True, OLD)


@pytest.mark.parametrize("state", UNDER_WAY)
def test_an_agent_killed_in_any_state_goes_on_and_keeps_the_active_model(state) -> None:
    model, action = step(in_state(state), Event.KILLED)
    assert model.update.state not in ENDED
    assert model.active == OLD
    again = {"fetching": Action.VERIFY, "staging": Action.VERIFY, "probation": Action.SWITCH}
    assert action.value == again.get(state, action).value
    assert action not in (Action.DROP, Action.ROLL_BACK, Action.COMMIT)


@pytest.mark.parametrize("state", ["self-test", "switching", "probation"])
def test_an_update_that_keeps_killing_the_agent_fails_after_some_starts(state) -> None:
    """Accident: the new model takes the agent down each time it answers."""
    model = in_state(state)
    for _ in range(MAX_STARTS - 1):
        model, action = step(model, Event.KILLED)
        assert action is not Action.ROLL_BACK
    model, action = step(model, Event.KILLED)
    assert (model.update.state, action, model.active) == ("failed", Action.ROLL_BACK, OLD)
    assert "the agent stopped" in model.update.reason


def test_a_state_that_this_agent_does_not_know_rolls_back() -> None:
    model, action = step(in_state("transcending"), Event.KILLED)
    assert (model.update.state, action, model.active) == ("failed", Action.ROLL_BACK, OLD)
    assert "not in the update table" in model.update.reason


@pytest.mark.parametrize("state", UNDER_WAY)
def test_a_newer_desired_state_supersedes_in_every_state(state) -> None:
    other = DesiredModel(target="models/intents/kitchen/3.0.0/x86-64", digest="sha256:" + "3" * 64, rollout="r3")
    model, actions = desire(in_state(state), other)
    assert actions == (Action.ROLL_BACK if state in LIVE else Action.DROP, Action.VERIFY)
    assert (model.update.digest, model.candidate, model.active) == (other.digest, None, OLD)


@pytest.mark.parametrize("state", UNDER_WAY)
def test_being_sent_back_to_the_active_model_ends_the_update_at_once(state) -> None:
    back = DesiredModel(target=OLD.target, digest=OLD.digest, rollout="r2")
    model, actions = desire(in_state(state), back)
    assert Action.VERIFY not in actions
    assert (model.update.state, model.update.digest, model.active) == ("committed", OLD.digest, OLD)


@pytest.mark.parametrize("state", STATES)
def test_the_same_desired_release_again_changes_nothing_while_it_stands(state) -> None:
    model = in_state(state)
    if state == "committed":
        model = ModelState(active=Placed(target=NEW.target, digest=NEW.digest), update=model.update)
    assert desire(model, NEW) == (model, ())


def test_a_release_that_failed_is_tried_again_for_another_rollout() -> None:
    again = DesiredModel(target=NEW.target, digest=NEW.digest, rollout="r9")
    _, actions = desire(in_state("failed"), again)
    assert actions == (Action.VERIFY,)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(Event)),
            st.integers(1, 4).map(
                lambda n: DesiredModel(
                    target=f"models/intents/kitchen/{n}.0.0/x86-64", digest=f"sha256:{str(n) * 64}", rollout=f"r{n}"
                )
            ),
        ),
        max_size=60,
    )
)
def test_no_walk_wedges_the_machine_or_loses_the_active_model(walk) -> None:
    model, action = ModelState(active=OLD), Action.COMMIT
    for event in walk:
        before = model.active
        if isinstance(event, DesiredModel):
            model, actions = desire(model, event)
            action = actions[-1] if actions else action
        elif model.busy:
            model, action = step(model, event)
        assert model.active is not None
        assert model.active == before or (action is Action.COMMIT and model.previous == before)
        assert model.candidate is None or model.update.state in LIVE
        assert ModelState.from_bytes(model.to_bytes()) == model
        assert model.update is None or report(model, 0, 0) is not None
    for _ in range(10):
        if model.busy:
            model, action = step(model, Event.DONE)
    assert not model.busy
