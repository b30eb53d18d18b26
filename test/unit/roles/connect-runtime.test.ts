import { expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createLogger } from "../../../agent/lib/log.ts";
import { type ConnectRuntimeDeps, connectRuntime } from "../../../agent/roles/connect-runtime.ts";
import type { Runtime } from "../../../agent/runtime/port.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const settings = {
  config: {
    containerRuntimeEndpoint: "unix:///run/c.sock",
    imageServiceEndpoint: "",
    runtimeRequestTimeout: 120_000,
    containerLogMaxSize: "10Mi",
    containerLogMaxFiles: 5,
    streamingConnectionIdleTimeout: 14_400_000,
  },
  flags: {
    podInfraContainerImage: "pause:1",
    cniConfDir: "/nowhere",
    cniBinDir: [],
    cniCacheDir: "/nowhere",
    cniDefaultNetwork: false,
  },
};
const runtime: Partial<Runtime> = {
  version: async () => ({ runtimeName: "containerd", runtimeVersion: "1.6", runtimeApiVersion: "v1" }),
  cgroupDriver: async () => "systemd",
  close: async () => {},
};

/** Fails with each of `errors` in turn, then connects. */
function setUp(errors: AgentError[]) {
  const lines: string[] = [];
  const clock = new FakeClock();
  const log = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
  const open: ConnectRuntimeDeps["open"] = async () => {
    const error = errors.shift();
    if (error !== undefined) throw error;
    return runtime as Runtime;
  };
  const nodeCredentials = { find: async () => [] };
  return { clock, lines, deps: { nodeName: "node-1", nodeCredentials, clock, log, open } };
}

test("waits for a runtime that is not there yet, and says so once", async () => {
  const away = () => new AgentError("Unavailable", "no socket at /run/c.sock");
  const { clock, lines, deps } = setUp([away(), away(), away()]);
  const connected = connectRuntime(settings, deps, new AbortController().signal);
  for (const ms of [0, 100, 200, 400]) await clock.advance(ms);
  expect(await connected).toMatchObject({ runtimeName: "containerd", cgroupDriver: "systemd" });
  expect(lines.filter((line) => line.includes("no socket at /run/c.sock"))).toHaveLength(1);
});

test("an endpoint that can never work is refused at once", async () => {
  const { deps } = setUp([new AgentError("Invalid", "tcp endpoints are not supported")]);
  await expect(connectRuntime(settings, deps, new AbortController().signal)).rejects.toThrow("tcp endpoints");
});

test("the wait ends when the agent is told to end", async () => {
  const { clock, deps } = setUp([new AgentError("Unavailable", "away")]);
  const stop = new AbortController();
  const connected = connectRuntime(settings, deps, stop.signal);
  const refused = expect(connected).rejects.toMatchObject({ name: "AbortError" });
  await clock.advance(10);
  stop.abort();
  await refused;
});
