"""Reports: fields, sentences and figures, of traces built by hand and of kernels that run."""

import json
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from synthetic_trace import GLOBAL, SHARED, Counts, Log

from cuda_numba import ptx
from cuda_numba.emulator import Report, emulate
from cuda_numba.emulator.columns import percent, size
from cuda_numba.emulator.roofline import GPUS, bound
from cuda_numba.emulator.trace import ArrayInfo, Finding
from cuda_numba.emulator.traffic import traffic_of_sites
from cuda_numba.namespace import cuda, float32, int32

SOURCE = """def transpose(x, y):
    tile = cuda.shared.array((32, 32), float32)
    for k in range(4):
        tile[k, i] = x[k, i]
    y[i * 32] = tile[i, 0] * 2.0
    if i < n:
        pass"""


def transpose_log():
    """One warp: four rows in, one column out, no barrier between."""
    log = Log(source=SOURCE)
    log.t.kernel = "transpose"
    x, put = log.site(4, "load", "global", array="x"), log.site(4, "store", "shared", array="tile")
    get, y = log.site(5, "load", "shared", array="tile"), log.site(5, "store", "global", array="y")
    for lane in range(32):
        for k in range(4):
            log.access(lane, x, GLOBAL + 128 * k + 4 * lane, path=k + 1)
            log.access(lane, put, SHARED + 128 * k + 4 * lane, path=k + 1)
        log.access(lane, get, SHARED + 128 * lane)
        log.access(lane, y, 2 * GLOBAL + 128 * lane)
    log.branch(6)
    log.branches = [(0, lane, 0, 0, int(lane < 12)) for lane in range(32)]
    log.loop(3)
    log.loops = [(0, lane, 0, 0, 4) for lane in range(32)]
    log.count(128, l4=Counts(long_integer=2, flops={"int": 3}))
    log.count(32, l5=Counts(flops={"float32": 1, "float64": 1}, promotions=1, barriers=1))
    log.t.shared_bytes = 4096
    log.t.arrays = {"tile": ArrayInfo("shared", SHARED, (32, 32), 4, "float32")}
    return log


@pytest.fixture(scope="module")
def report():
    return Report(transpose_log().trace())


def test_totals(report):
    assert (report.reads, report.writes) == (512, 128)
    assert (report.requests, report.sectors, report.moved) == (5, 16 + 32, 48 * 32)
    assert report.efficiency == (512 + 128) / (48 * 32)
    assert report.footprint == 48 * 32
    assert (report.conflicts, report.degree) == (31, 32)
    assert (report.flops, report.tensor_flops, report.promotions) == (64, 0, 32)
    assert report.flops_by_type == {"int": 384, "float32": 32, "float64": 32}
    assert (report.long_integer, report.barriers) == (256, 1)
    assert report.intensity == 64 / (48 * 32)
    assert report.divergence == 1 / 2
    assert (report.shared_bytes, report.local_bytes) == (4096, 0)
    assert report.by_space["shared"].requests == 5
    assert report.of("global", "store").sectors == 32
    assert report.of(kind="load").requests == 5


def test_lines(report):
    assert list(report.lines) == [3, 4, 5, 6]
    four, five, six = (report.lines[n] for n in (4, 5, 6))
    assert (four.reads, four.efficiency, four.conflicts) == (512, 1.0, 0)
    assert (five.writes, five.sectors, five.efficiency) == (128, 32, 0.125)
    assert (five.degree, five.promotions, five.flops) == (32, 32, 64)
    assert (six.parting.executions, six.parting.divergent, six.parting.aside) == (1, 1, 12)
    assert five.text == "y[i * 32] = tile[i, 0] * 2.0"
    assert report.lines[3].quiet and not five.quiet


def test_findings_come_first_everywhere(report):
    assert {f.kind for f in report.findings} == {"race", "uninitialised"}
    assert [f.lines for f in report.races] == [(4, 5)]
    assert report.lines[4].findings == report.races
    for text in (str(report), report._repr_html_()):
        assert text.index("race: line 4") < text.index("bank conflicts") < text.index("requests")
    clean = Report(Log().trace())
    assert clean.findings == clean.races == clean.remarks == []
    assert "no findings" in str(clean)
    assert "no findings" in clean._repr_html_()


def test_remarks_say_what_costs_time(report):
    text = "\n".join(report.remarks)
    assert "stores move 32 sectors per request where 4 would do: 12.5 % of" in text
    assert "32-way bank conflicts: 32 wavefronts where 1 would do" in text
    assert "32 operations in float64 that nobody asked for" in text
    assert "part in 1 of 1 cases, on average 12 lanes against the others" in text
    assert "64 bits wide" in text
    assert all("line 4" not in remark for remark in report.remarks)


def test_remarks_leave_what_is_as_it_should_be():
    log = Log((128, 1, 1), source="if t == 0:\n    out[0] = s\nfor i in n:")
    site = log.site(2, "store", "global")
    log.access(0, site, GLOBAL)
    log.branch(1)
    log.branches = [(0, t, 0, 0, int(t == 0)) for t in range(128)]
    log.loop(3)
    log.loops = [(0, t, 0, 0, 100 + (t == 5)) for t in range(128)]
    assert Report(log.trace()).remarks == []
    log.loops = [(0, t, 0, 0, t % 32) for t in range(128)]
    (remark,) = Report(log.trace()).remarks
    assert "4 of 4 cases: 50 % of the trips, a lane waits" in remark


def test_equal_findings_merge_with_their_count():
    log = Log(source="a = x[i]\nb = 1")
    log.t.findings = [
        Finding("negative_index", "line 1: index -1 wraps", (1,)),
        *(
            Finding("out_of_bounds", f"element {i} of an array of 8", (1,), ((i, 0, 0),), (0, 0, 0))
            for i in range(8, 11)
        ),
        Finding("out_of_bounds", "another sentence", (1,)),
    ]
    report = Report(log.trace())
    kinds = [(f.kind, f.count) for f in report.findings]
    assert kinds == [("out_of_bounds", 3), ("out_of_bounds", 1), ("negative_index", 1)]
    assert str(report.findings[0]) == (
        "out of bounds: element 8 of an array of 8 (3 times) "
        "(line 1, thread (8, 0, 0) of block (0, 0, 0))"
    )
    assert report.lines[1].text == "a = x[i]"
    assert len(report.lines[1].findings) == 3


def test_functions_of_other_files_have_their_own_lines(tmp_path):
    other = tmp_path / "other.py"
    other.write_text("def f(x, i):\n    return x[i] + 1\n")
    log = transpose_log()
    site = log.site(2, "load", "global")
    log.t.sites[site] = log.t.sites[site].__class__(
        2, 0, "load", "global", "z", 4, function="f", filename=str(other)
    )
    log.warp(site, [3 * GLOBAL + 8 * i for i in range(32)])
    report = Report(log.trace())
    assert list(report.lines)[-1] == "f:2"
    line = report.lines["f:2"]
    assert (line.sectors, line.text) == (8, "return x[i] + 1")
    assert any(remark.startswith("line 2 of f `return x[i] + 1`") for remark in report.remarks)
    assert 2 not in report.lines
    assert "f:2" in str(report) and "f:2" in report._repr_html_()


# ---- presentation -----------------------------------------------------------------------------


def test_table_is_narrow_and_shows_only_columns_with_numbers(report):
    text = str(report)
    table = text[text.index("  line  ") :].splitlines()
    assert "wavefronts" in table[0] and "tensor" not in table[0] and "local" not in table[0]
    assert [row.split()[0] for row in table[1:]] == ["!", "!", "6"]
    assert "1,984" not in text and "31 (32-way)" in text
    assert max(map(len, text.splitlines())) < 190
    assert "for k in range" not in text  # nothing to say about it


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_balanced_small_escaped_and_deterministic(report):
    html = report._repr_html_()
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert parser.tags == {"div", "b", "code", "span", "table", "tr", "th", "td"}
    assert parser.attributes == {"style", "title", "colspan"}
    assert html == Report(transpose_log().trace())._repr_html_()
    assert "if i &lt; n:" in html and "if i < n" not in html
    assert len(html) < 20_000


def test_html_of_a_huge_kernel_stays_small():
    lines = [f"    y[{i}] = x[{i}] + {'longer ' * 8}" for i in range(2000)]
    log = Log(source="\n".join(lines))
    for i in range(2000):
        log.access(0, log.site(i + 1, "load", "global"), GLOBAL + 4 * i)
    log.t.findings = [Finding("race", f"{'word ' * 30}{i * '!'}", (i,)) for i in range(1, 90)]
    html = Report(log.trace())._repr_html_()
    assert len(html) < 100_000
    assert "more lines: print(report)" in html and "more findings" in html


def test_to_dict_is_json_with_stable_keys(report):
    d = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert d["sectors"] == 48 and d["lines"]["5"]["conflicts"] == 31
    assert d["traffic"]["global store"]["sectors"] == 32
    assert d["findings"][0]["lines"] == [4, 5]
    assert set(d) == {
        "barrier_waits", "barriers", "block", "conflicts", "degree", "divergence", "efficiency",
        "findings", "flops", "flops_by_type", "footprint", "grid", "intensity", "kernel", "lines",
        "local_bytes", "long_integer", "moved", "parting", "promotions", "reads", "remarks",
        "requests", "sectors", "shared_bytes", "tensor_flops", "traffic", "writes",
    }  # fmt: skip
    only_work = Log()
    only_work.count(1, l1=Counts(flops={"float32": 1}))
    assert Report(only_work.trace()).to_dict()["intensity"] is None
    assert Report(only_work.trace()).intensity == float("inf")


def test_sizes_and_shares_read_well():
    assert [size(n) for n in (5, 1000, 1024, 1536, 2**20 * 12, 2**30)] == [
        "5 B", "1000 B", "1 KiB", "1.5 KiB", "12 MiB", "1 GiB",
    ]  # fmt: skip
    assert percent(1 / 3) == "33.3 %"


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def png(figure) -> int:
    file = BytesIO()
    figure.savefig(file, format="png")
    return len(file.getvalue())


def texts(figure) -> str:
    found = [t.get_text() for ax in figure.axes for t in ax.texts]
    found += [t.get_text() for ax in figure.axes for t in (ax.title, ax._left_title)]
    labels = [t.get_text() for ax in figure.axes for t in ax.get_yticklabels()]
    return "\n".join(found + labels)


def test_figure_says_where_the_bytes_go(report, pyplot):
    figure = report.figure()
    text = texts(figure)
    assert "race, lines 4 and 5" in text
    assert "1 KiB, 12.5 % used" in text and "512 B, 100 % used" in text
    assert "32, 32-way conflict" in text
    assert "y[i * 32] = tile[i, 0] * 2.0    5" in text
    assert png(figure) < 100_000
    assert png(Report(Log().trace()).figure()) < 100_000


def test_figure_keeps_the_heaviest_lines(pyplot):
    log = Log((32, 1, 1))
    for line in range(1, 41):
        site = log.site(line, "load", "global")
        for path in range(line):
            log.access(0, site, GLOBAL, path=path)
    labels = [t.get_text() for t in Report(log.trace()).figure().axes[1].get_yticklabels()]
    assert [int(label) for label in labels] == list(range(27, 41))


def test_roofline_and_the_least_time(report, pyplot):
    figure = report.roofline("T4")
    assert "under the roofline of one T4" in texts(figure)
    assert png(figure) < 100_000
    least = bound(report, "T4")
    assert least["memory"] == 48 * 32 / 320e9 and least["bound"] == "memory"
    with pytest.raises(ValueError, match='gpu: must be one of "T4".*got "V100"'):
        report.roofline("V100")
    assert all(g.tensor > g.float32 > g.bandwidth > 1e11 for g in GPUS.values())
    assert png(Report(Log().trace()).roofline()) < 100_000


def test_access_map_knows_who_and_when(report, pyplot):
    figure = report.access_map("tile")
    who, when = (np.ma.filled(ax.images[0].get_array(), -1) for ax in figure.axes[:2])
    assert who.shape == (32, 32)
    assert who[3].tolist() == list(range(32))
    assert when[:, 5].tolist()[:4] == [1, 2, 3, 4]  # path 0 is the column's
    assert who[5, 0] == 5 and who[5, 1] == -1
    assert png(figure) < 100_000
    assert png(report.access_map("x")) < 100_000  # whose shape is not known
    with pytest.raises(ValueError, match="array: must be one of those that the kernel touched"):
        report.access_map("w")


def test_access_map_finds_wide_accesses_by_their_address(pyplot):
    log = Log((8, 1, 1), (2, 1, 1))
    wide = log.site(1, "store", "shared", 16, array="")  # instructions do not know the name
    for block in range(2):
        for thread in range(8):
            log.access(thread, wide, SHARED + 16 * thread, block=block)
    log.access(0, log.site(2, "store", "shared"), SHARED + 128)  # another array
    log.t.arrays = {"s": ArrayInfo("shared", SHARED, (32,), 4, "float32")}
    figure = Report(log.trace()).access_map("s")
    (who,) = np.ma.filled(figure.axes[0].images[0].get_array(), -1)
    assert who.tolist() == [i // 4 for i in range(32)]
    assert figure.axes[0].get_xlabel() == "column = bank"


def test_access_map_shows_when_only_where_it_differs(pyplot):
    """Where each thread touches one element, there is no "when" to see."""
    log = Log((8, 1, 1))
    once, again = log.site(1, "store", "global"), log.site(2, "store", "global")
    for thread in range(8):
        log.access(thread, once, GLOBAL + 4 * thread)
    log.t.arrays = {"y": ArrayInfo("global", GLOBAL, (16,), 4, "float32")}
    titles = [ax.get_title(loc="left") for ax in Report(log.trace()).access_map("y").axes]
    assert [t for t in titles if t] == ["who: thread of the block"]
    for thread in range(8):
        log.access(thread, again, GLOBAL + 4 * (8 + thread))
    figure = Report(log.trace()).access_map("y")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [t for t in titles if t] == ["who: thread of the block", "when: step of that thread"]
    (when,) = np.ma.filled(figure.axes[1].images[0].get_array(), -1)
    assert when.tolist() == [0] * 8 + [1] * 8


# ---- kernels that run -------------------------------------------------------------------------


def copy(x, y, step):
    i = cuda.grid(1)
    if i * step < x.size:
        y[i * step] = x[i * step]


@pytest.mark.parametrize("step, per_request, efficiency", [(1, 4, 1), (2, 8, 0.5), (32, 32, 0.125)])
def test_kernel_with_a_stride(step, per_request, efficiency):
    x, y = np.arange(64 * step, dtype=np.float32), np.zeros(64 * step, np.float32)
    report = emulate(copy).report(2, 32, x, y, step)
    assert (report.requests, report.reads, report.writes) == (4, 256, 256)
    assert report.of("global").sectors_per_request == per_request
    assert report.efficiency == efficiency
    assert report.findings == []
    assert (y[::step] == x[::step]).all()


def test_kernel_on_a_misaligned_view():
    x, y = np.zeros(65, np.float32), np.zeros(65, np.float32)
    report = emulate(copy).report(2, 32, x[1:], y[1:], 1)
    assert (report.of("global", "load").sectors, report.of("global", "store").sectors) == (10, 10)


def transpose_kernel(pad, barrier):
    columns = 32 + pad

    def transpose(x, y):
        tile = cuda.shared.array((32, columns), float32)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        for k in range(0, 32, 8):
            tile[j + k, i] = x[j + k, i]
        if barrier:
            cuda.syncthreads()
        for k in range(0, 32, 8):
            y[j + k, i] = tile[i, j + k]

    return transpose


@pytest.mark.parametrize("pad, degree", [(0, 32), (1, 1), (4, 4)])
def test_transposing_a_tile(pad, degree):
    x = np.arange(1024, dtype=np.float32).reshape(32, 32)
    y = np.zeros_like(x)
    report = emulate(transpose_kernel(pad, True)).report(1, (32, 8), x, y)
    assert (y == x.T).all()
    assert report.degree == degree
    assert report.conflicts == 32 * (degree - 1)
    assert (report.sectors, report.efficiency) == (256, 1.0)
    assert report.barriers == 1
    assert report.findings == []


def staged(step, group):
    """Two copies of 16 bytes by each lane, `step` such pieces apart, waited for together or not."""

    def kernel(x, y):
        tile = cuda.shared.array(2048, float32, 16)
        t = cuda.threadIdx.x
        for k in range(2):
            to = ptx.shared_address(tile) + 16 * (32 * step * k + step * t)
            ptx.cp_async_16(to, ptx.global_address(x) + 16 * (32 * k + t))
            if not group:
                ptx.cp_async_commit()
                ptx.cp_async_wait(0)
        ptx.cp_async_commit()
        ptx.cp_async_wait(0)
        y[4 * t] = tile[4 * step * t]
        y[4 * (t + 32)] = tile[4 * step * (t + 32)]

    return kernel


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize(
    "step, wavefronts, degree", [(1, 8, 1), (2, 16, 2), (4, 32, 4), (8, 64, 8)]
)
def test_a_copy_of_16_bytes_by_each_lane_takes_four_wavefronts(step, wavefronts, degree, group):
    """512 bytes of a warp go a quarter at a time, as those of an ordinary store; eight lanes whose
    pieces lie `step` apart meet in 32 / step banks. Copies that one wait ends are two requests."""
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    report = emulate(staged(step, group)).report(1, 32, x, y)
    assert (y[::4] == x[::4]).all() and report.findings == []
    (store,) = (
        traffic
        for site, traffic in zip(report.trace.sites, traffic_of_sites(report.trace), strict=True)
        if site.via and site.kind == "store"
    )
    assert (store.requests, store.wavefronts, store.degree) == (2, wavefronts, degree)
    assert store.conflicts == wavefronts - 2 * 4


def test_a_missing_barrier_is_found_with_both_lines():
    x = np.zeros((32, 32), np.float32)
    kernel = transpose_kernel(1, False)
    report = emulate(kernel).report(1, (32, 8), x, x.copy())
    first = kernel.__code__.co_firstlineno
    (race,) = report.races
    assert race.lines == (first + 4, first + 8)
    assert race.threads[0] != race.threads[1]
    assert "`tile[j + k, i] = x[j + k, i]`" in race.message
    assert "no barrier between them" in race.message


def test_a_race_with_the_right_value_is_still_one():
    def fill(y):
        s = cuda.shared.array(1, float32)
        s[0] = float32(1.0)
        cuda.syncthreads()
        y[cuda.threadIdx.x] = s[0]

    y = np.zeros(64, np.float32)
    report = emulate(fill).report(1, 64, y)
    assert (y == 1).all()
    assert [f.lines for f in report.races] == [(fill.__code__.co_firstlineno + 2,)]


def test_shuffles_order_no_memory_and_syncwarp_does():
    def exchange(y, sync):
        s = cuda.shared.array(32, int32)
        t = cuda.threadIdx.x
        s[t] = t
        if sync:
            cuda.syncwarp()
        else:
            t = cuda.shfl_sync(0xFFFFFFFF, t, cuda.laneid)
        y[t] = s[31 - t]

    y = np.zeros(32, np.int32)
    assert emulate(exchange).report(1, 32, y, True).findings == []
    races = emulate(exchange).report(1, 32, y, False).races
    assert len(races) == 1 and "neither syncwarp" in races[0].message


def test_atomics_and_divergence_of_a_histogram():
    def histogram(x, bins, odd):
        i = cuda.grid(1)
        cuda.atomic.add(bins, x[i], 1)
        if i % 2 == 1:
            odd[i] = 1

    x = np.zeros(64, np.int32)
    bins = np.zeros(4, np.int32)
    report = emulate(histogram).report(2, 32, x, bins, np.zeros(64, np.int32))
    assert bins[0] == 64
    assert report.races == []
    assert report.of("global", "atomic").collisions == 32
    assert (report.parting.executions, report.parting.divergent) == (2, 2)
    assert report.divergence == 1.0


def test_uninitialised_shared_memory_is_found():
    def half(x, y):
        s = cuda.shared.array(64, float32)
        t = cuda.threadIdx.x
        if t < 32:
            s[t] = x[t]
        cuda.syncthreads()
        y[t] = s[t]

    x = np.zeros(64, np.float32)
    report = emulate(half).report(1, 64, x, x.copy())
    (found,) = report.findings
    assert (found.kind, found.count) == ("uninitialised", 32)
    assert found.threads[0][0] >= 32
    assert found.lines == (half.__code__.co_firstlineno + 6,)


def test_seeds_change_no_count():
    x = np.arange(1024, dtype=np.float32).reshape(32, 32)
    kernel = emulate(transpose_kernel(0, True))
    reports = [
        kernel.report(1, (32, 8), x, np.zeros_like(x), seed=seed).to_dict() for seed in (None, 1, 2)
    ]
    assert reports[0] == reports[1] == reports[2]
