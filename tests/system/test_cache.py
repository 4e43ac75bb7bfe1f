"""What was loaded last is kept within a bound, once, while it is the same."""

import os
import threading
import time

from kd.system.cache import Cache, folder_stamp


class Shelf:
    """A cache, what it had to load, and the stamps of its keys."""

    def __init__(self, most: float) -> None:
        self.sizes, self.loaded, self.stamps = {}, [], {}
        self.cache = Cache(lambda: most, lambda value: self.sizes[value])

    def get(self, key: str, size: float = 1, slowly: float = 0) -> str:
        def load() -> str:
            time.sleep(slowly)
            self.loaded.append(key)
            return key.upper()

        self.sizes[key.upper()] = size
        return self.cache.get(key, load, lambda: self.stamps.get(key))


def test_the_least_recently_used_leaves_when_the_bound_is_met():
    shelf = Shelf(most=3)
    for key in "abcadb":  # a is asked for again before d comes, so b has left when it is asked for again
        assert shelf.get(key) == key.upper()
    assert shelf.loaded == list("abcdb") and shelf.cache.size() == 3


def test_what_is_larger_than_the_bound_is_given_and_not_kept():
    shelf = Shelf(most=3)
    assert shelf.get("a", size=9) == "A" and shelf.cache.size() == 0
    assert shelf.get("a", size=9) == "A" and shelf.loaded == ["a", "a"]


def test_what_has_changed_is_loaded_again_and_what_is_deleted_leaves():
    shelf = Shelf(most=9)
    for key in "ab":
        shelf.get(key)
    shelf.stamps["a"] = "changed"
    shelf.get("b")
    assert shelf.cache.size() == 1
    shelf.get("a")
    assert shelf.loaded == ["a", "b", "a"]


def test_two_who_ask_at_once_load_once():
    shelf = Shelf(most=9)
    threads = [threading.Thread(target=shelf.get, args=("a", 1, 0.05)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shelf.loaded == ["a"]


def test_a_failed_load_is_not_kept():
    shelf = Shelf(most=9)
    try:
        shelf.cache.get("a", lambda: 1 / 0)
    except ZeroDivisionError:
        assert shelf.cache.size() == 0 and shelf.get("a") == "A"


def test_what_was_put_is_found_until_its_stamp_changes_or_it_is_forgotten():
    cache, now = Cache(lambda: 2), [0]
    for key in "abc":
        cache.put(key, key.upper(), lambda: now[0] < 1)
    assert [cache.find(key) for key in "abc"] == [None, "B", "C"]
    cache.forget("b")
    assert cache.find("b") is None and cache.find("c") == "C"
    now[0] = 1
    assert cache.find("c") is None and cache.size() == 0


def test_a_folders_stamp_changes_with_its_files(tmp_path):
    assert folder_stamp(tmp_path / "none") == ()
    file = tmp_path / "weights"
    file.write_text("one")
    first = folder_stamp(tmp_path)
    os.utime(file, (1, 1))
    assert first != folder_stamp(tmp_path) == folder_stamp(tmp_path)
