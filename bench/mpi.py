#!/usr/bin/env python3
"""mpi.py BUILD [--readme]: steps on two ranks, and a model of steps on many machines.

1. Two ranks of one core each beside one process of two threads, on this machine.
2. Two hosts: network namespaces, joined by a wire whose rate `tc` (tbf) shapes. Where the kernel has no netem, a
   relay between two TUN devices adds the latency: it holds each packet for so long. Open MPI over TCP starts the
   second rank through `ip netns exec`, as it would through ssh. As root, with iproute2.
3. The fit of t = compute / R + m latency + bytes / rate to those steps, and its table for 2 to 64 machines.

--readme writes the tables into bench/README.md. Nothing in them is typed."""
import fcntl
import heapq
import json
import os
import select
import struct
import subprocess
import sys
import time

BUILD = sys.argv[1] if len(sys.argv) > 1 else 'build'
WORK = os.path.abspath(BUILD + '/tmp/bench-mpi')
MPIRUN = os.environ.get('MPIRUN', 'mpirun.openmpi')
PROGRAM = os.path.abspath(BUILD + '/dictlearn-mpi')
PLAIN = os.path.abspath(BUILD + '/dictlearn')
NAMES = ['dl_bench0', 'dl_bench1']
ADDRESS = ['10.77.0.1', '10.77.0.2']
SIZES = {'B': 1024, 'd': 256, 'F': 4096}
LINES = []


def say(line=''):
    print(line, flush=True)
    LINES.append(line)


def run(command, check=True, **more):
    return subprocess.run(command, shell=isinstance(command, str), check=check, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **more)


def rows(path, n, d):
    """Sums of eight of 2 d directions, and noise, as a .npy."""
    import array
    import random
    draw = random.Random(1)
    head = ("{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (n, d)).ljust(117) + '\n'
    base = [[draw.gauss(0, 1) for _ in range(d)] for _ in range(64)]
    with open(path, 'wb') as f:
        f.write(b'\x93NUMPY\x01\x00' + struct.pack('<H', 118) + head.encode())
        for _ in range(n):
            a, b, c = draw.choice(base), draw.choice(base), draw.choice(base)
            noise = draw.random()
            array.array('f', [x + y + noise * z for x, y, z in zip(a, b, c)]).tofile(f)


def words(name, steps, sizes):
    n_ctxs = max(1, sizes['B'] * 2 // 128)
    return ['train', '--data', WORK + '/x%d.npy' % sizes['d'], '--dict-size', str(sizes['F']), '--batch-size',
            str(sizes['B']), '--recipe', 'dl-top_k', '--k', str(sizes.get('k', 64)), '--n-ctxs', str(n_ctxs), '--steps',
            str(steps), '--epochs', '1e6', '--log-steps', '1', '--save-dir', WORK + '/' + name, '--warmup-steps', '5']


def step_of(name, first):
    """Seconds of a step: the median over those from `first` on, by the times that the log's rates imply."""
    log = [json.loads(line) for line in open(WORK + '/' + name + '/log.jsonl')]
    ends = [(i + 1) * SIZES['B'] / line['rows_per_second'] for i, line in enumerate(log)]
    each = sorted(b - a for a, b in zip(ends[first:], ends[first + 1:]))
    return each[len(each) // 2]


def environment(threads):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1', OMP_NUM_THREADS=str(threads))
    return env


def alone(threads, steps=12):
    run([PLAIN] + words('alone', steps, SIZES) + ['--quiet', '--threads', str(threads)], env=environment(threads))
    return step_of('alone', 3)


def together(steps=12):
    run([MPIRUN, '--quiet', '--oversubscribe', '--bind-to', 'core', '-np', '2', PROGRAM] +
        words('together', steps, SIZES) + ['--quiet', '--threads', '1'], env=environment(1))
    return step_of('together', 3)


# ---- two hosts
def tun(name):
    fd = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH', name.encode(), 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
    os.set_blocking(fd, False)
    return fd


def relay(fds, delay):
    """Passes packets on, each after `delay` seconds."""
    held, number = [], 0
    while True:
        wait = max(0, held[0][0] - time.monotonic()) if held else 1
        for fd in select.select(fds, [], [], wait)[0]:
            try:
                packet = os.read(fd, 70000)
            except OSError:
                continue
            number += 1
            heapq.heappush(held, (time.monotonic() + delay, number, fds[1 - fds.index(fd)], packet))
        while held and held[0][0] <= time.monotonic():
            _, _, fd, packet = heapq.heappop(held)
            try:
                os.write(fd, packet)
            except OSError:
                pass


class Wire:
    """Two namespaces and a wire of this latency (seconds) and rate (bits a second)."""

    def __init__(self, latency, rate):
        self.child = 0
        self.clean()
        for name in NAMES:
            run(['ip', 'netns', 'add', name])
        if latency:
            fds = [tun('dlb0'), tun('dlb1')]
            for i in range(2):
                run(['ip', 'link', 'set', 'dlb%d' % i, 'netns', NAMES[i]])
        else:
            run('ip link add dlb0 netns %s type veth peer name dlb1 netns %s' % tuple(NAMES))
        for i in range(2):
            run('ip -n {0} addr add {1}/24 dev dlb{2} && ip -n {0} link set dlb{2} mtu {3} up && '
                'ip -n {0} link set lo up'.format(NAMES[i], ADDRESS[i], i, 9000))
            run('tc -n %s qdisc replace dev dlb%d root tbf rate %dbit burst %d latency 200ms' %
                (NAMES[i], i, rate, max(65536, int(rate / 8 / 250))))
        if latency:
            self.child = os.fork()
            if not self.child:
                relay(fds, latency)
            for fd in fds:
                os.close(fd)

    def clean(self):
        if self.child:
            os.kill(self.child, 9)
            os.waitpid(self.child, 0)
        for name in NAMES:
            run(['ip', 'netns', 'del', name], check=False)

    def mpirun(self, command):
        agent = WORK + '/agent.sh'
        with open(agent, 'w') as f:
            f.write("#!/bin/sh\nshift\nexec ip netns exec %s unshare -u sh -c 'hostname dlb1; exec sh -c \"$0\"' \"$*\"\n"
                    % NAMES[1])
        os.chmod(agent, 0o755)
        quoted = ' '.join("'%s'" % word for word in command)
        inside = ('hostname dlb0; exec %s --quiet --mca plm_rsh_agent %s --mca oob_tcp_if_include 10.77.0.0/24 --mca btl '
                  'tcp,self --mca btl_tcp_if_include 10.77.0.0/24 --host %s:1,%s:1 -np 2 %s' %
                  (MPIRUN, agent, ADDRESS[0], ADDRESS[1], quoted))
        return run(['ip', 'netns', 'exec', NAMES[0], 'unshare', '-u', 'sh', '-c', inside], env=environment(1))


def shaped(latency, rate, steps=8):
    """Seconds of a step, and bytes that rank 0 sends in one."""
    wire = Wire(latency, rate)
    try:
        sent = []
        for n in (2, steps):
            out = wire.mpirun([PROGRAM] + words('shaped', n, SIZES) + ['--threads', '1']).stderr
            line = [x for x in out.splitlines() if ' has sent ' in x][-1]
            sent.append(int(line.split(' has sent ')[1].split()[0]))
        return step_of('shaped', 2), (sent[1] - sent[0]) / (steps - 2)
    finally:
        wire.clean()


def solve(points):
    """Least squares of t = c + m L + b / r over (L, r, t)."""
    a = [[1, latency, 1 / rate] for latency, rate, _ in points]
    normal = [[sum(x[i] * x[j] for x in a) for j in range(3)] + [sum(x[i] * p[2] for x, p in zip(a, points))]
              for i in range(3)]
    for i in range(3):
        pivot = max(range(i, 3), key=lambda k: abs(normal[k][i]))
        normal[i], normal[pivot] = normal[pivot], normal[i]
        for k in range(3):
            if k != i:
                by = normal[k][i] / normal[i][i]
                normal[k] = [x - by * y for x, y in zip(normal[k], normal[i])]
    return [normal[i][3] / normal[i][i] for i in range(3)]


def two_hosts(compute):
    points, sent = [], 0
    say('| wire | step | t = compute / 2 + m latency + bytes / rate |')
    say('|---|---|---|')
    for latency, rate in ((0, 1e8), (0, 3e8), (0, 1e9), (0.002, 1e9), (0.01, 1e9)):
        t, sent = shaped(latency, rate)
        points.append((latency, rate, t))
    c, m, b = solve(points)
    for latency, rate, t in points:
        model = c + m * latency + b / rate
        say('| %g ms, %g Mb/s | %.1f ms | %.1f ms |' % (latency * 1e3, rate / 1e6, t * 1e3, model * 1e3))
    say()
    say('Fitted: compute / 2 = %.1f ms (a step of one process on one thread takes %.1f ms, half of it %.1f), m = %.1f '
        'latencies a step, %.2f MB a step, where rank 0 counts %.2f MB (B d 4 bytes are %.2f MB).' %
        (c * 1e3, compute * 1e3, compute * 500, m, b / 8e6, sent / 1e6, SIZES['B'] * SIZES['d'] * 4 / 1e6))
    return m


def table(m, per):
    """per: seconds that one core takes for a row, a feature and a column."""
    cores, rows_of, d, features, layers, latency = 64, 8192, 4096, 131072, 32, 20e-6
    compute = per * rows_of * d * features / cores
    say('A machine is taken as %d cores of this kind that share a step evenly; %d rows a step, d %d, F %d, a latency of '
        '%.0f us, m = %.0f. A step on one machine: %.2f s. The transcoder has %d layers of %d features and the same '
        'encoder; each row of its reconstruction has %d columns. Nothing is taken off for what overlaps.' %
        (cores, rows_of, d, features, latency * 1e6, m, compute, layers, features // layers, layers * d))
    say()
    say('| machines | SAE, 10 Gb/s | SAE, 100 Gb/s | CLT, 10 Gb/s | CLT, 100 Gb/s |')
    say('|---|---|---|---|---|')
    for count in (2, 4, 8, 16, 32, 64):
        cells = []
        for width in (d, d * layers):
            for rate in (1e10, 1e11):
                t = compute / count + m * latency + 2 * (count - 1) / count * rows_of * width * 4 * 8 / rate
                cells.append('%.3f s (%.2g x)' % (t, compute / t))
        say('| %d | %s |' % (count, ' | '.join(cells)))
    say()
    say('In brackets: times as fast as one machine. m is that of the step above (dl-top_k, which sums counts to find the '
        'cut of each row) on wires of 2 and 10 ms, where it also has what TCP waits for its windows.')


def main():
    os.makedirs(WORK, exist_ok=True)
    if not os.path.exists(WORK + '/x%d.npy' % SIZES['d']):
        rows(WORK + '/x%d.npy' % SIZES['d'], 4 * SIZES['B'], SIZES['d'])
    one = two = both = 1e9
    for _ in range(3):  # in turns, the best of each
        two, both, one = min(two, alone(2)), min(both, together()), min(one, alone(1))
    say('A step of %(B)d rows, d %(d)d, F %(F)d, dl-top_k with k 64:' % SIZES)
    say()
    say('| what | a step |')
    say('|---|---|')
    say('| one process, one thread | %.1f ms |' % (one * 1e3))
    say('| one process, two threads | %.1f ms |' % (two * 1e3))
    say('| two ranks of one core each | %.1f ms, %.2f times that (goal <= 1.1) |' % (both * 1e3, both / two))
    say()
    say('Two hosts (network namespaces, tbf; latency by a relay: this kernel may lack netem), a core each:')
    say()
    m = two_hosts(one)
    say()
    say('**A model, not a measurement**: t = compute / R + m latency + 2 (R - 1) / R B d 4 bytes / rate.')
    say()
    table(m, one / (SIZES['B'] * SIZES['d'] * SIZES['F']))
    if '--readme' in sys.argv:
        text = open('bench/README.md').read()
        begin, end = '<!-- mpi:begin -->\n', '<!-- mpi:end -->'
        head, rest = text.split(begin)
        open('bench/README.md', 'w').write(head + begin + '\n'.join(LINES) + '\n' + end + rest.split(end)[1])


main()
