import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createNotifier } from "../../agent/lib/sd-notify.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { createTestNode } from "../support/node/node.ts";
import { startNotifyReceiver } from "../support/notify-receiver.ts";

const run = promisify(execFile);
let dir: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-supervisor-"));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

describe("a notice", () => {
  test.each([
    { where: "a path", address: () => join(dir, "notify.sock") },
    { where: "the abstract name space", address: () => `@nodelet-test-${randomUUID()}` },
  ])("at $where counts as this process's own, as NotifyAccess=main wants it", async ({ address }) => {
    const socket = address();
    await using receiver = await startNotifyReceiver(socket);
    await createNotifier({ socket }).notify("READY=1", "STATUS=up");
    expect(await receiver.heard("READY=1")).toEqual({ pid: process.pid, text: "READY=1" });
    expect(await receiver.heard("STATUS=up")).toMatchObject({ pid: process.pid });
  });

  test("that nobody listens to is an error that says so", async () => {
    const notifier = createNotifier({ socket: join(dir, "nobody.sock") });
    await expect(notifier.notify("READY=1")).rejects.toMatchObject({
      code: "Unavailable",
      message: /systemd-notify exited with 1: .*No such file or directory/,
    });
  });
});

test("the agent says that it is ready, alive and ending, though runtime and API server are away", async () => {
  await using node = await createTestNode({ containerd: false });
  const etc = join(node.dir, "etc");
  await mkdir(etc, { recursive: true });
  const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
  const runtime = `containerRuntimeEndpoint: unix://${node.dir}/nobody.sock\n`;
  await writeFile(join(etc, "kubelet.yaml"), `${head}${runtime}failCgroupV1: false\npodLogsDir: ${node.dir}/logs\n`);
  const kubeconfig = {
    apiVersion: "v1",
    kind: "Config",
    "current-context": "c",
    clusters: [{ name: "c", cluster: { server: "https://127.0.0.1:1" } }],
    contexts: [{ name: "c", context: { cluster: "c", user: "u" } }],
    users: [{ name: "u", user: { token: "none" } }],
  };
  await writeFile(join(etc, "kubeconfig"), JSON.stringify(kubeconfig));
  const address = join(node.dir, "notify.sock");
  await using receiver = await startNotifyReceiver(address);
  const args = ["--config", join(etc, "kubelet.yaml"), "--kubeconfig", join(etc, "kubeconfig")];
  const agent = await node.start(join(projectRoot, "dist/nodelet"), [...args, "--root-dir", join(node.dir, "root")], {
    env: { ...process.env, NOTIFY_SOCKET: address, WATCHDOG_USEC: "2000000" },
  });
  expect(await receiver.heard("READY=1")).toMatchObject({ pid: agent.pid });
  expect(await receiver.heard("WATCHDOG=1")).toMatchObject({ pid: agent.pid });
  await agent.stop();
  expect(await agent.exited).toBe(0);
  expect(await receiver.heard("STOPPING=1")).toMatchObject({ pid: agent.pid });
}, 60_000);

test("a watchdog that is too short is refused at start", async () => {
  const env = { ...process.env, NOTIFY_SOCKET: "/nowhere", WATCHDOG_USEC: "500000" };
  const config = join(dir, "kubelet.yaml");
  const head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
  await writeFile(config, `${head}failCgroupV1: false\n`);
  const started = run(join(projectRoot, "dist/nodelet"), ["--config", config, "--kubeconfig", "/nowhere"], { env });
  await expect(started).rejects.toMatchObject({ code: 1, stderr: /WatchdogSec must be more than 1s/ });
});

test("prlimit changes the limit of open files of the process that asks", async () => {
  const module = join(projectRoot, "agent/roles/process-limits.ts");
  const log = join(projectRoot, "agent/lib/log.ts");
  const script = `
    import { readFile } from "node:fs/promises";
    import { openFilesLimits, setOpenFilesMax } from ${JSON.stringify(module)};
    import { silentLogger } from ${JSON.stringify(log)};
    await setOpenFilesMax(777, { log: silentLogger });
    console.log(JSON.stringify(openFilesLimits(await readFile("/proc/self/limits", "utf8"))));
  `;
  const { stdout } = await run(process.execPath, ["--input-type=module-typescript", "-e", script]);
  expect(JSON.parse(stdout)).toEqual({ soft: 777, hard: 777 });
});

test("systemd finds no fault with the unit", async () => {
  const text = await readFile(join(projectRoot, "systemd/nodelet.service"), "utf8");
  const unit = join(dir, "nodelet.service");
  // The executable need not be installed here.
  await writeFile(unit, text.replaceAll("/usr/local/bin/nodelet", "/bin/true"));
  const { stdout, stderr } = await run("systemd-analyze", ["verify", "--man=no", unit]);
  expect(stdout + stderr).toBe("");
});
