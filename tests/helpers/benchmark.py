"""What tools/benchmark.py prints."""


def figures(capsys) -> list[str]:
    """Return the printed lines after the first, which names the CPU."""
    cpu, *lines = capsys.readouterr().out.splitlines()
    assert cpu.startswith("CPU: ")
    return lines
