"""Settings as flags of the command line."""

from tests.support.command import kd


def test_the_command_line_refuses_bad_settings_with_code_2_and_no_run(tmp_path):
    done = kd("distill", "--temperature", "0", "--runs-dir", tmp_path)
    assert done.returncode == 2
    assert "temperature is '0'; expected a number above 0" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    assert kd("distill", "--preset", "nope").returncode == 2
    assert kd("distil").returncode == 2
