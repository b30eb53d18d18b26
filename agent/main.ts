import { type Command, parseCommandLine } from "./config/load.ts";
import { ConfigError } from "./config/problems.ts";
import { wantsColour } from "./config/inspect.ts";
import { readSupervisor, type Supervisor } from "./config/supervisor.ts";
import { logLevelOf } from "./config/verbosity.ts";
import { runInspect, type Terminal } from "./explain/command.ts";
import { writeFileAtomic } from "./lib/atomic-file.ts";
import { systemClock } from "./lib/clock.ts";
import { messageOf } from "./lib/errors.ts";
import { createLogger } from "./lib/log.ts";
import { saveMemoryWhenQuiet } from "./lib/memory.ts";
import { dialerRole, serveDials } from "./lib/namespace-dialer-role.ts";
import { setUpProcess } from "./lib/process-setup.ts";
import { runRulesInspection } from "./proxy/inspect/command.ts";
import type { Surroundings } from "./roles/cluster.ts";
import { openKubeletStores, startKubelet } from "./roles/kubelet.ts";
import { RunningParts } from "./roles/parts.ts";
import { cleanUpProxy, initProxy } from "./roles/proxy-once.ts";
import { startProxyRole } from "./roles/proxy.ts";
import { runSupervision } from "./roles/supervisor.ts";
import { createAgentHealth } from "./server/health.ts";
import { endOnUnhandledErrors, untilTold } from "./signals.ts";
import { kubeletVersion, nodeletVersion, versionText } from "./version.ts";

// Well below the time that systemd and the kubelet's usual supervisors give (30 s).
const drainMs = 10_000;

type Daemon = Extract<Command, { kind: "run" } | { kind: "proxy" }>;

/** Command line → configuration → roles → run → drain. @returns the exit code */
async function main(args: readonly string[]): Promise<number> {
  if (args[0] === dialerRole) {
    await serveDials();
    return 0;
  }
  await setUpProcess();
  const command = parseCommandLine(args);
  switch (command.kind) {
    case "help":
      process.stdout.write(command.text);
      return 0;
    case "version": {
      const { stdout, stderr } = versionText(command.raw);
      process.stderr.write(stderr);
      process.stdout.write(stdout);
      return 0;
    }
    case "writeConfig":
      // Readable for all: the file has no secrets in it.
      await writeFileAtomic(command.path, command.text, 0o644);
      process.stderr.write(`wrote ${command.path}\n`);
      return 0;
    case "explain":
    case "pods":
      return await runInspect(command, terminal());
    case "rules":
    case "trace":
      return await runRulesInspection(command, terminal());
    case "run":
    case "proxy":
      return runDaemon(command);
    default:
      return command satisfies never;
  }
}

function terminal(): Terminal {
  return {
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    columns: process.stdout.isTTY ? process.stdout.columns : undefined,
    isColoured: process.stdout.isTTY && wantsColour(),
  };
}

async function runDaemon(command: Daemon): Promise<number> {
  const { logging } = command.kind === "run" ? command.kubelet.config : command.proxy.config;
  const log = createLogger({ level: logLevelOf(logging.verbosity) });
  endOnUnhandledErrors(log);
  const stop = untilTold(log);
  log.info({ version: nodeletVersion, kubernetes: kubeletVersion, node: process.version }, "nodelet starts");
  for (const warning of command.warnings) log.warn({ warning }, "configuration");

  if (command.kind === "proxy" && command.cleanup) return cleanUpProxy(log, stop);
  if (command.kind === "proxy" && command.initOnly) return initProxy(command.proxy, log);

  const supervisor = readSupervisor();
  const parts = new RunningParts(log);
  const syncFrequencyMs = command.kind === "run" ? command.kubelet.config.syncFrequency : 0;
  const health = createAgentHealth({ clock: systemClock, log, syncFrequencyMs, signal: stop });
  const failure = await runUntilTold(command, supervisor, { clock: systemClock, log, parts, stop, health });
  const stuck = await parts.stop(drainMs, systemClock);
  if (stuck.length > 0) log.error({ parts: stuck }, "some parts did not stop in time");
  if (failure instanceof ConfigError) throw failure;
  if (failure !== undefined) log.fatal({ err: messageOf(failure) }, "nodelet ends");
  else log.info("nodelet ends");
  return failure === undefined && stuck.length === 0 ? 0 : 1;
}

/** @returns why it ended, undefined if it was told to */
async function runUntilTold(command: Daemon, supervisor: Supervisor, surroundings: Surroundings): Promise<unknown> {
  const { clock, parts, stop, health } = surroundings;
  const told = new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve(), { once: true }));
  try {
    const started =
      command.kind === "run" ? startBoth(command, surroundings) : startProxyRole(command.proxy, surroundings);
    const { checks } = health;
    parts.start("supervisor", (signal) => runSupervision({ supervisor, checks, started, ...surroundings }, signal));
    parts.start("saving of memory", (signal) => saveMemoryWhenQuiet({ clock }, signal));
    await Promise.race([told, parts.failed, started.then(() => told)]);
    return undefined;
  } catch (err) {
    return stop.aborted ? undefined : err;
  }
}

async function startBoth(command: Extract<Daemon, { kind: "run" }>, surroundings: Surroundings): Promise<void> {
  const stores = await openKubeletStores(command.kubelet, surroundings);
  await Promise.all([
    startKubelet(command.kubelet, stores, surroundings),
    command.proxy === undefined ? undefined : startProxyRole(command.proxy, surroundings, stores),
  ]);
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (err: unknown) => {
    const lines = err instanceof ConfigError ? err.lines : [messageOf(err)];
    for (const line of lines) process.stderr.write(`nodelet: ${line}\n`);
    process.exit(1);
  },
);
