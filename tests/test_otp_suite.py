"""Erlang/OTP's own supervisor suite: every case with the tests that port it to real processes.

A case is called as OTP calls it. What OTP starts by a function that returns, starts here by a process that
says Ready; ``normal`` and ``shutdown`` are exits with a clean code; ``kill`` is SIGKILL. Where a case does
not apply, the table says why. ``tests/policy/test_otp_cases.py`` has most of them without processes, too.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

REST, DYNAMIC, STRATEGIES = "test_otp_rest.py", "test_dynamic_devices.py", "test_strategies.py"
SUPERVISION, GROUPS, RELOAD = "test_supervision.py", "test_groups.py", "test_reload.py"
NO_LOGGER = "does not apply: about the levels and the formats of OTP's logger"
NO_CALLBACK = "does not apply: a configuration is data, and has no function that could answer ignore"
NO_EXTRA = (
    "does not apply: a device's start returns nothing but Ready; what it has to tell, it emits or answers"
)

CASES: dict[str, str | list[str]] = {
    "sup_start_normal": [f"{REST}::test_sup_start_normal"],
    "sup_start_ignore_init": NO_CALLBACK,
    "sup_start_ignore_child": [f"{GROUPS}::test_sup_start_ignore_child"],
    # Decided otherwise: what the configuration names stays known, however it ends.
    "sup_start_ignore_temporary_child": [f"{GROUPS}::test_sup_start_ignore_child"],
    "sup_start_ignore_temporary_child_start_child": [f"{REST}::test_sup_start_ignore_start_child"],
    "sup_start_ignore_temporary_child_start_child_simple": [f"{REST}::test_sup_start_ignore_simple"],
    "sup_start_ignore_permanent_child_start_child_simple": [f"{REST}::test_sup_start_ignore_simple"],
    "sup_start_error_return": [
        "config/test_findings.py::test_a_mistake_is_told_where_it_is_and_what_would_be_right"
    ],
    "sup_start_fail": [f"{SUPERVISION}::test_given_device_that_cannot_start_start_fails_with_its_reason"],
    "sup_start_child_returns_error": [f"{DYNAMIC}::test_sup_start_child_returns_error"],
    "sup_start_restart_child_returns_error": [f"{DYNAMIC}::test_sup_start_restart_child_returns_error"],
    "sup_start_child_returns_error_simple": [f"{REST}::test_sup_start_child_returns_error_simple"],
    "sup_start_map": [f"{REST}::test_sup_start_map", f"{DYNAMIC}::test_child_adm"],
    "sup_start_map_simple": [f"{REST}::test_sup_start_map_simple"],
    "sup_start_map_faulty_specs": [f"{DYNAMIC}::test_child_specs"],
    "sup_stop_infinity": [f"{STRATEGIES}::test_sup_stop_infinity"],
    "sup_stop_timeout": [f"{STRATEGIES}::test_sup_stop_timeout"],
    "sup_stop_timeout_dynamic": [f"{REST}::test_sup_stop_timeout_dynamic"],
    "sup_stop_brutal_kill": [f"{STRATEGIES}::test_sup_stop_brutal_kill"],
    "sup_stop_brutal_kill_dynamic": [f"{GROUPS}::test_sup_stop_brutal_kill_dynamic"],
    "sup_stop_race": [
        f"{REST}::test_sup_stop_race",
        f"{STRATEGIES}::test_stop_while_children_die_ends_promptly",
    ],
    "sup_stop_non_shutdown_exit_dynamic": [f"{REST}::test_sup_stop_non_shutdown_exit_dynamic"],
    "child_adm": [f"{DYNAMIC}::test_child_adm"],
    "child_adm_simple": [f"{GROUPS}::test_child_adm_simple"],
    "extra_return": NO_EXTRA,
    "child_specs": [f"{DYNAMIC}::test_child_specs"],
    "child_specs_map": ["config/test_groups.py::test_given_any_mix_of_significance_it_is_as_in_otp"],
    "sup_flags": ["config/test_findings.py::test_a_mistake_is_told_where_it_is_and_what_would_be_right"],
    "multiple_restarts": [f"{STRATEGIES}::test_multiple_restarts_inside_the_window_never_give_up"],
    "one_for_one": [f"{STRATEGIES}::test_one_for_one", f"{REST}::test_third_death_at_intensity_two"],
    "one_for_one_escalation": [f"{STRATEGIES}::test_one_for_one_escalation"],
    "one_for_all": [f"{STRATEGIES}::test_one_for_all"],
    "one_for_all_escalation": [f"{REST}::test_group_escalation"],
    "one_for_all_other_child_fails_restart": [f"{REST}::test_other_child_fails_restart"],
    "simple_one_for_one": [f"{GROUPS}::test_simple_one_for_one"],
    "simple_one_for_one_shutdown": [f"{REST}::test_simple_one_for_one_shutdown"],
    "simple_one_for_one_extra": NO_EXTRA,
    "simple_one_for_one_escalation": [f"{REST}::test_simple_one_for_one_escalation"],
    "simple_one_for_one_corruption": [f"{DYNAMIC}::test_removed_device_gives_journal_and_descriptors_back"],
    "simple_one_for_one_restart_ignore": [f"{REST}::test_simple_one_for_one_restart_ignore"],
    "rest_for_one": [f"{STRATEGIES}::test_rest_for_one"],
    "rest_for_one_escalation": [f"{REST}::test_group_escalation"],
    "rest_for_one_other_child_fails_restart": [f"{REST}::test_other_child_fails_restart"],
    "external_start_no_progress_log": NO_LOGGER,
    **{
        f"{restart}_{end}": [f"{REST}::test_termination"]
        for end in ("normal", "shutdown", "abnormal")
        for restart in ("permanent", "transient", "temporary")
    },
    "faulty_application_shutdown": [
        f"{GROUPS}::test_group_that_cannot_start_fails_the_start_with_its_reason"
    ],
    "child_unlink": [
        "test_hostile_worker.py::test_given_attack_it_ends_in_its_report_and_the_neighbour_is_answered"
    ],
    "tree": [
        f"{GROUPS}::test_tree",
        f"{GROUPS}::test_tree_escalation",
        f"{GROUPS}::test_tree_added_devices_are_not_resurrected",
    ],
    "count_children": [f"{DYNAMIC}::test_count_children"],
    "count_children_supervisor": [f"{GROUPS}::test_count_children_supervisor"],
    "count_restarting_children": [f"{DYNAMIC}::test_count_restarting_children"],
    "get_callback_module": "does not apply: there are no callback modules",
    "do_not_save_start_parameters_for_temporary_children": [
        f"{DYNAMIC}::test_removed_device_gives_journal_and_descriptors_back"
    ],
    "do_not_save_child_specs_for_temporary_children": [
        f"{DYNAMIC}::test_do_not_save_child_specs_for_temporary_children"
    ],
    "simple_one_for_one_scale_many_temporary_children": [
        "policy/test_scale.py::test_given_ten_times_more_children_each_step_costs_the_same"
    ],
    "temporary_bystander": [f"{REST}::test_temporary_bystander"],
    # Its supervisor is a process that can be killed by itself, with a global name; here that is the zygote.
    "simple_global_supervisor": [
        f"{SUPERVISION}::test_given_zygote_killed_devices_come_back_without_a_second_copy",
        f"{GROUPS}::test_simple_one_for_one",
    ],
    "hanging_restart_loop": [f"{DYNAMIC}::test_hanging_restart_loop"],
    "hanging_restart_loop_rest_for_one": [f"{REST}::test_hanging_restart_loop_rest_for_one"],
    "hanging_restart_loop_simple": [f"{REST}::test_hanging_restart_loop_simple"],
    "code_change": [f"{RELOAD}::test_code_change_flags", f"{RELOAD}::test_code_change_strategy"],
    "code_change_map": [f"{RELOAD}::test_code_change_children"],
    "code_change_simple": [f"{RELOAD}::test_code_change_simple"],
    "code_change_simple_map": [f"{RELOAD}::test_code_change_simple"],
    "order_of_children": [f"{STRATEGIES}::test_order_of_children"],
    "scale_start_stop_many_children": [
        "policy/test_scale.py::test_given_ten_times_more_children_each_step_costs_the_same"
    ],
    "format_log_1": NO_LOGGER,
    "format_log_2": [f"{REST}::test_crash_report_names_the_offender"],
    "already_started_outside_supervisor": "does not apply: names are the supervisor's own",
    "which_children": [f"{DYNAMIC}::test_which_children"],
    "which_children_simple_one_for_one": [f"{GROUPS}::test_child_adm_simple"],
    "nonsignificant_temporary": [f"{REST}::test_nonsignificant"],
    "nonsignificant_transient": [f"{REST}::test_nonsignificant"],
    "significant_temporary": [f"{REST}::test_significant_temporary"],
    "significant_transient": [f"{REST}::test_significant_transient"],
    "significant_simple": ["config/test_groups.py::test_given_mistake_in_a_group_it_is_told"],
    "significant_bystander": [f"{REST}::test_significant_bystander"],
    "significant_escalation": [f"{GROUPS}::test_significant_escalation"],
    **{
        f"significant_upgrade_{change}": [f"{RELOAD}::test_significant_upgrade"]
        for change in ("never_any", "any_never", "never_all", "all_never", "any_all", "all_any")
    },
    "significant_upgrade_child": [f"{RELOAD}::test_significant_upgrade_child"],
}


@cache
def _tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_given_otps_list_every_case_has_its_place() -> None:
    """All 93 cases are in the table, each once."""
    assert len(CASES) == 93


@pytest.mark.parametrize("case", CASES)
def test_given_case_its_tests_are_there_or_it_says_why_not(case: str) -> None:
    """Nothing is claimed that is not there."""
    port = CASES[case]
    if isinstance(port, str):
        assert port.startswith("does not apply: ")
        return
    for name in port:
        file, _, function = name.partition("::")
        assert function in _tests_in(file), name
