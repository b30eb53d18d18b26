import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { annotations } from "../../../agent/pods/container-annotations.ts";
import {
  keepLogNumber,
  removeDeadLinks,
  readTerminationMessage,
  terminationLogBytesMax,
  terminationLogLinesMax,
} from "../../../agent/pods/container-logs.ts";
import { Executor, type ExecutorDeps, type StepContext } from "../../../agent/pods/executor.ts";
import type { ContainerStatus } from "../../../agent/runtime/port.ts";
import { containerOf, exited, podOf, snapshot } from "./support.ts";

test("the number of a log that went with its container is not given again; a log that stayed is not touched", async () => {
  await using root = await makeTempDirectory();
  const deps = { settings: { podLogsDir: root.path } } as unknown as Parameters<typeof keepLogNumber>[1];
  const dir = join(root.path, "default_web_u1", "app");
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, "0.log"), "said");
  for (const name of ["0.log", "1.log"]) await keepLogNumber(exited({ logPath: join(dir, name) }), deps);
  expect(await readdir(dir)).toEqual(["0.log", "1.log"]);
  expect(await readFile(join(dir, "0.log"), "utf8")).toBe("said");
  await keepLogNumber(exited({ logPath: join(dir, "gone", "2.log") }), deps);
  await keepLogNumber(exited({ logPath: "/proc/elsewhere/2.log" }), deps);
});

test("logs go with their container, but for those that another one has, too", async () => {
  await using root = await makeTempDirectory();
  const [podLogsDir, containerLogsDir] = [join(root.path, "pods"), join(root.path, "containers")];
  const dir = join(podLogsDir, "ns_web_u1", "app");
  await mkdir(dir, { recursive: true });
  await mkdir(containerLogsDir);
  const logs = ["0.log", "0.log.20260101-000000.gz", "00.log", "1.log"];
  for (const name of logs) await writeFile(join(dir, name), "said");
  for (const id of ["late", "app"]) await symlink(join(dir, "0.log"), join(containerLogsDir, `web_ns_app-${id}.log`));
  const removed: string[] = [];
  const runtime = { removeContainer: async (id: string) => void removed.push(await Promise.resolve(id)) };
  const executor = new Executor({ runtime, settings: { podLogsDir, containerLogsDir } } as unknown as ExecutorDeps);
  const remove = async (containerID: string, ...containers: ContainerStatus[]) => {
    const context = { pod: podOf(), observed: snapshot({ containers }) } as StepContext; // of which nothing else is read
    await executor.execute({ kind: "RemoveContainer", containerID }, context);
  };
  const [late, app, next] = ["late", "app", "next"].map((id, i) =>
    containerOf({ id, logPath: join(dir, i === 2 ? "1.log" : "0.log") }),
  ) as [ContainerStatus, ContainerStatus, ContainerStatus];
  await remove("late", app, late, next);
  expect((await readdir(dir)).sort()).toEqual(logs);
  expect(await readdir(containerLogsDir)).toEqual(["web_ns_app-app.log"]);
  await remove("app", app, next);
  expect((await readdir(dir)).sort()).toEqual(["00.log", "1.log"]);
  expect(removed).toEqual(["late", "app"]);
  expect(await readdir(containerLogsDir)).toEqual([]);
});

test("links to logs that are gone go, but for those of containers that run, and other people's", async () => {
  await using root = await makeTempDirectory();
  const [podLogsDir, containerLogsDir] = [join(root.path, "pods"), join(root.path, "containers")];
  const logs = join(podLogsDir, "default_web_u1", "app");
  await mkdir(logs, { recursive: true });
  await mkdir(containerLogsDir);
  await writeFile(join(logs, "0.log"), "said");
  await symlink("/nonexistent/docker/json.log", join(logs, "7.log")); // with Docker, what it leads to is a link
  const target: Record<string, string> = {
    "web_default_app-there.log": join(logs, "0.log"),
    "web_default_app-gone.log": join(logs, "1.log"),
    "web_default_app-docker.log": join(logs, "7.log"),
    "web_default_app-ended.log": join(logs, "1.log"),
    "web_default_app-rotating.log": join(logs, "2.log"),
    "web_default_app-cut.log": join(logs, "2.log"),
    "web_default_app-foreign.log": "/nonexistent/elsewhere/0.log",
    "web_default_app-odd.txt": join(logs, "1.log"),
  };
  for (const [name, to] of Object.entries(target)) await symlink(to, join(containerLogsDir, name));
  await writeFile(join(containerLogsDir, "no_link-gone.log"), "");
  const deps = { settings: { podLogsDir, containerLogsDir } } as unknown as Parameters<typeof removeDeadLinks>[1];
  const running = ["rotating", "cut-off"].map((id) => containerOf({ id }));
  await removeDeadLinks([...running, exited({ id: "ended" })], deps);
  expect((await readdir(containerLogsDir)).sort()).toEqual([
    "no_link-gone.log",
    ...["cut.log", "foreign.log", "odd.txt", "rotating.log", "there.log"].map((name) => `web_default_app-${name}`),
  ]);
});

async function read(hostPath: string, asWritten = "/dev/termination-log"): Promise<string> {
  const containerPath = "/dev/termination-log";
  const mount = { containerPath, hostPath, readonly: false, selinuxRelabel: false, propagation: "PRIVATE" as const };
  const status = exited({ mounts: [{ ...mount, recursiveReadOnly: false }] });
  status.annotations = { ...status.annotations, [annotations.terminationMessagePath]: asWritten };
  return await readTerminationMessage(status);
}

describe("without last words of its own, a container that failed leaves the end of its log", () => {
  const header = (tag: "F" | "P") => `2026-01-01T00:00:00.123456789Z stderr ${tag} `;
  // Runtimes cut long lines into pieces of this size.
  const piece = 16 * 1024;
  const json = (log: string) => `${JSON.stringify({ log, stream: "stderr", time: "2026-01-01T00:00:00.1Z" })}\n`;
  const cases = [
    { name: "its lines, from Docker", log: `${json("first\n")}${json("la")}${json("st\n")}`, want: "first\nlast\n" },
    {
      name: "2048 bytes of a line without end, from Docker",
      log: json("a".repeat(piece)).repeat(64),
      want: "a".repeat(terminationLogBytesMax),
    },
    { name: "its lines", log: `${header("F")}first\n${header("F")}last\n`, want: "first\nlast\n" },
    { name: "80 lines of many", log: `${header("F")}x\n`.repeat(200), want: "x\n".repeat(terminationLogLinesMax) },
    {
      name: "2048 bytes of a long line",
      log: `${header("F")}${"a".repeat(5_000)}\n`,
      want: `${"a".repeat(terminationLogBytesMax - 1)}\n`,
    },
    {
      name: "2048 bytes of a line without end, of 1 MiB",
      log: `${header("P")}${"a".repeat(piece)}\n`.repeat(64),
      want: "a".repeat(terminationLogBytesMax),
    },
    {
      name: "2048 bytes of such a line and its end",
      log: `${`${header("P")}${"a".repeat(piece)}\n`.repeat(64)}${header("F")}end\n`,
      want: `${"a".repeat(terminationLogBytesMax - 4)}end\n`,
    },
    { name: "nothing of what is no log", log: "garbage\n".repeat(10), want: "" },
  ];
  test.each(cases)("$name", async ({ log, want }) => {
    await using dir = await makeTempDirectory();
    const logPath = join(dir.path, "0.log");
    await writeFile(logPath, log);
    const status = exited({ exitCode: 1, logPath });
    status.annotations = {
      ...status.annotations,
      [annotations.terminationMessagePolicy]: "FallbackToLogsOnError",
    };
    expect(await readTerminationMessage(status)).toBe(want);
    expect(await readTerminationMessage({ ...status, exitCode: 0 })).toBe("");
  });
});

async function makeTempDirectory(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "nodelet-last-words-"));
  return { path, [Symbol.asyncDispose]: async () => await rm(path, { recursive: true, force: true }) };
}

test("a termination log is read; one that is no file, as a fifo of the pod's own making, holds up nobody", async () => {
  await using dir = await makeTempDirectory();
  const [file, fifo] = [join(dir.path, "file"), join(dir.path, "fifo")];
  await writeFile(file, "bye");
  await exec("mkfifo", [fifo], { timeoutMs: 5_000 });
  expect(await read(file)).toBe("bye");
  expect(await read(file, "dev/termination-log")).toBe("bye");
  expect(await read(file, "/dev/other")).toBe("");
  expect(await read(file, "")).toBe("");
  expect(await read(fifo)).toBe("");
  expect(await read(dir.path)).toBe("");
  expect(await read(join(dir.path, "gone"))).toBe("");
});
