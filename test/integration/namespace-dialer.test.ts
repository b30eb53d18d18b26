import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, symlink, writeFile } from "node:fs/promises";
import { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createNamespaceDialer } from "../../agent/lib/namespace-dialer.ts";
import { dialerRole, parseDialAnswer } from "../../agent/lib/namespace-dialer-role.ts";
import type { DockerClient } from "../../agent/runtime/docker/client.ts";
import { createSandboxDialers, type SandboxDialer } from "../../agent/runtime/docker/streaming/dialers.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { eventually } from "../support/runtime/watching.ts";

const executable = new URL("../../dist/nodelet", import.meta.url).pathname;
const never = new AbortController().signal;
const port = 8080;

let node: TestNode;

beforeAll(async () => {
  node = await createTestNode({ containerd: false });
  await node.start("/bin/busybox", ["nc", "-ll", "-p", String(port), "-e", "/bin/cat"]);
});

afterAll(async () => {
  await node?.destroy();
});

/** PIDs of helpers that this process started and that have not ended. */
async function helpers(): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
  const isHelper = async (pid: number) => {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
    const [state, parent] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const line = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    return Number(parent) === process.pid && state !== "Z" && line.includes("namespace-dialer-role");
  };
  const found = await Promise.all(pids.map(async (pid) => ((await isHelper(pid)) ? [pid] : [])));
  return found.flat();
}

async function echoes(socket: Socket, text: string): Promise<void> {
  socket.write(text);
  const [answer] = (await once(socket, "data")) as [Buffer];
  expect(answer.toString()).toBe(text);
}

test("connections are made in the namespace and go on without the helper, which ends with its dialer", async () => {
  const dialer = createNamespaceDialer(node.network.netnsPath);
  const sockets: Socket[] = [];
  try {
    await eventually(async () => void sockets.push(await dialer.dial(port, never)), 20_000);
    sockets.push(...(await Promise.all(Array.from({ length: 20 }, async () => await dialer.dial(port, never)))));
    expect(await helpers()).toHaveLength(1);
    await expect(dialer.dial(9, never)).rejects.toThrow(/localhost:9 .*connection refused/);
    dialer.close();
    await eventually(async () => expect(await helpers()).toEqual([]));
    for (const [i, socket] of sockets.entries()) {
      socket.resume();
      await echoes(socket, `hello ${i}`);
    }
  } finally {
    dialer.close();
    for (const socket of sockets) socket.destroy();
  }
}, 60_000);

test("a helper that is killed is replaced with the next connection", async () => {
  const dialer = createNamespaceDialer(node.network.netnsPath);
  try {
    (await dialer.dial(port, never)).destroy();
    const [first] = await helpers();
    expect(first).toBeDefined();
    process.kill(first!, "SIGKILL");
    await eventually(async () => {
      const socket = await dialer.dial(port, never);
      socket.resume();
      await echoes(socket, "again");
      socket.destroy();
    });
  } finally {
    dialer.close();
  }
}, 60_000);

test("the executable is a dialer when the agent starts it as one, and nothing when somebody else does", async () => {
  const alone = await node.exec(executable, [dialerRole]);
  expect(alone).toMatchObject({ code: 1, stderr: expect.stringContaining("only the agent can start") });

  const child: ChildProcess = spawn("nsenter", [`--net=${node.network.netnsPath}`, "--", executable, dialerRole], {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  try {
    const exited = once(child, "exit");
    const answers = new Map<number, { error: string | undefined; socket: Socket | undefined }>();
    child.on("message", (message: unknown, handle: unknown) => {
      const { id, error } = parseDialAnswer(message);
      answers.set(id, { error, socket: handle instanceof Socket ? handle : undefined });
    });
    child.send({ id: 1, port });
    child.send({ id: 2, port: 9 });
    await eventually(async () => expect(answers.size).toBe(2), 20_000);
    expect(answers.get(2)?.error).toContain("connection refused");
    const { socket } = answers.get(1)!;
    socket!.resume();
    await echoes(socket!, "hello");
    socket!.destroy();
    child.disconnect();
    expect(await exited).toEqual([0, null]);
  } finally {
    child.kill("SIGKILL");
  }
}, 60_000);

test("a sandbox that has the process number of one before gets connections to its own network", async () => {
  // An empty network beside the node's: nobody listens there.
  const stranger = spawn("unshare", ["--net", "sleep", "1000000"], { stdio: "ignore" });
  const procDir = await mkdtemp(join(tmpdir(), "nodelet-proc-"));
  const directory = join(procDir, "77");
  const become = async (sandboxID: string, netnsPath: string) => {
    await rm(directory, { recursive: true, force: true });
    await mkdir(join(directory, "ns"), { recursive: true });
    await symlink(netnsPath, join(directory, "ns/net"));
    await writeFile(join(directory, "cgroup"), `0::/kubepods/${sandboxID}\n`);
  };
  const answer = { Id: "x", State: { Running: true, Pid: 77 } };
  const client = {
    docker: { getContainer: () => ({ inspect: async () => await Promise.resolve(answer) }) },
    call: async (_what: string, run: (signal: AbortSignal) => Promise<unknown>) => await run(never),
  } as unknown as DockerClient;
  const dialers = createSandboxDialers(client, procDir);
  const open: SandboxDialer[] = [];
  const dialed = async (dialer: SandboxDialer) => (await dialer.dial(port, never)).destroy();
  try {
    await become("first", node.network.netnsPath);
    const first = await dialers.open("first", never);
    open.push(first);
    await dialed(first);
    await eventually(async () =>
      expect(await readlink(`/proc/${stranger.pid}/ns/net`)).not.toBe(await readlink("/proc/self/ns/net")),
    );
    await become("second", `/proc/${stranger.pid}/ns/net`);
    const second = await dialers.open("second", never);
    open.push(second);
    await expect(dialed(second)).rejects.toThrow(`failed to connect to localhost:${port}`);
    // Its session goes on, also with another helper.
    for (const pid of await helpers()) process.kill(pid, "SIGKILL");
    await eventually(async () => await dialed(first));
    await expect(dialers.open("first", never)).rejects.toMatchObject({ code: "Conflict" });
  } finally {
    for (const dialer of open) dialer.release();
    stranger.kill("SIGKILL");
    await rm(procDir, { recursive: true, force: true });
  }
  await eventually(async () => expect(await helpers()).toEqual([]));
}, 60_000);
