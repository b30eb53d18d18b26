import { lstat, mkdir, mkdtemp, readFile, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { createLogger, silentLogger } from "../../../../agent/lib/log.ts";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { createLogDriver, linkLog, unlinkLog } from "../../../../agent/runtime/docker/logs.ts";
import type { WireInspect } from "../../../../agent/runtime/docker/wire.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-docker-logs-"));
});
afterEach(async () => await rm(dir, { recursive: true, force: true }));

test("the driver keeps as much as the kubelet's configuration says, whatever the daemon's defaults", () => {
  const rest = { compress: "false", mode: "blocking" };
  const cases = [
    { options: { maxSizeBytes: 10_485_760, maxFiles: 5 }, want: { "max-size": "10485760", "max-file": "5", ...rest } },
    { options: { maxSizeBytes: 0, maxFiles: 2 }, want: { "max-size": "1", "max-file": "2", ...rest } },
    {
      options: { maxSizeBytes: -1, maxFiles: 5 },
      want: { "max-size": "9007199254740991", "max-file": "1", ...rest },
    },
  ];
  for (const { options, want } of cases) {
    const { config } = createLogDriver(options, silentLogger);
    expect(config).toEqual({ Type: "json-file", Config: want });
  }
});

test("a daemon whose log-opts allow for one mode only gets its way, and is told of once", () => {
  const lines: string[] = [];
  const log = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
  const driver = createLogDriver({ maxSizeBytes: 100, maxFiles: 5 }, log);
  const refusal = new AgentError(
    "Invalid",
    "create container app: logger: max-buffer-size option is only supported with 'mode=non-blocking'",
  );
  expect(driver.giveWay(new AgentError("Invalid", "create container app: invalid reference format"))).toBe(false);
  expect(driver.giveWay(new AgentError("Internal", refusal.message))).toBe(false);
  expect(driver.config.Config["mode"]).toBe("blocking");

  // Two containers at once.
  expect(driver.giveWay(refusal)).toBe(true);
  expect(driver.giveWay(refusal)).toBe(true);
  expect(driver.config).toEqual({
    Type: "json-file",
    Config: { "max-size": "100", "max-file": "5", compress: "false" },
  });
  expect(lines).toHaveLength(1);
});

/** A container whose log is to lie in `logPath`. */
function container(logPath: string, LogPath: string): WireInspect {
  const Labels = { "io.kubernetes.container.logpath": logPath, "io.kubernetes.docker.type": "container" };
  return { Id: "c1", Name: "/k8s_app_web_default_u1_0", LogPath, Config: { Labels } };
}

test("the link is made, with its directory, and made again over whatever is there", async () => {
  const logPath = join(dir, "pods", "default_web_u1", "app", "0.log");
  const started = container(logPath, "/data/c1/c1-json.log");
  await linkLog(started);
  expect(await readlink(logPath)).toBe("/data/c1/c1-json.log");
  expect((await stat(join(logPath, ".."))).mode & 0o777).toBe(0o755);
  await linkLog(started);

  await rm(logPath);
  await writeFile(logPath, "of a runtime that was here before");
  await linkLog(started);
  expect(await readlink(logPath)).toBe("/data/c1/c1-json.log");

  await unlinkLog(started);
  await unlinkLog(started);
  await expect(lstat(logPath)).rejects.toThrow("ENOENT");
});

test("a file in the link's place is not removed", async () => {
  const logPath = join(dir, "0.log");
  await writeFile(logPath, "kept");
  await unlinkLog(container(logPath, "/data/c1/c1-json.log"));
  expect(await readFile(logPath, "utf8")).toBe("kept");
});

test("nor is the link of another container that was to have the same path", async () => {
  const logPath = join(dir, "0.log");
  await linkLog(container(logPath, "/data/c2/c2-json.log"));
  for (const LogPath of ["/data/c1/c1-json.log", ""]) await unlinkLog(container(logPath, LogPath));
  expect(await readlink(logPath)).toBe("/data/c2/c2-json.log");
  await unlinkLog(container("", ""));
});

test("a log directory that is a link leads nowhere", async () => {
  await mkdir(join(dir, "host"));
  await symlink(join(dir, "host"), join(dir, "app"));
  const started = container(join(dir, "app", "0.log"), "/data/c1/c1-json.log");
  await expect(linkLog(started)).rejects.toThrow(/^link log of container c1 to .*0\.log: E(LOOP|NOTDIR)/);
  await expect(lstat(join(dir, "host", "0.log"))).rejects.toThrow("ENOENT");
});

test("a container without a log file is told as one", async () => {
  const started = container(join(dir, "0.log"), "");
  await expect(linkLog(started)).rejects.toMatchObject({ code: "Invalid" });
});
