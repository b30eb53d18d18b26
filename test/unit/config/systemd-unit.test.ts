import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { readSupervisor } from "../../../agent/config/supervisor.ts";
import { fixture, runCommand } from "./support.ts";

const text = readFileSync(new URL("../../../systemd/nodelet.service", import.meta.url), "utf8");
const settings = text.split("\n").filter((line) => /^\w+=/.test(line));
const valuesOf = (name: string) =>
  settings.filter((line) => line.startsWith(`${name}=`)).map((line) => line.slice(name.length + 1));

/** ExecStart's arguments as systemd would pass them: `$NAME` is split into words, and nothing if it is not set. */
function execStart(more: Record<string, string> = {}): string[] {
  const variables = { ...more };
  for (const assignment of valuesOf("Environment")) {
    const [name = "", ...value] = assignment.replaceAll('"', "").split("=");
    variables[name] ??= value.join("=");
  }
  const [, ...args] = (valuesOf("ExecStart")[0] ?? "").split(" ");
  return args.flatMap((word) => {
    if (!word.startsWith("$")) return [word];
    return (variables[word.slice(1)] ?? "").split(" ").filter((part) => part !== "");
  });
}

test("the unit starts the agent with the files and flags that kubeadm writes", () => {
  const files = { "/var/lib/kubelet/config.yaml": fixture("kubeadm-kubelet.yaml") };
  const args = execStart({
    KUBELET_KUBEADM_ARGS: "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
    NODELET_ARGS: "--v=4",
  });
  const { kubelet } = runCommand(args, { files });
  expect(kubelet.flags.kubeconfig).toBe("/etc/kubernetes/kubelet.conf");
  expect(kubelet.flags.bootstrapKubeconfig).toBe("/etc/kubernetes/bootstrap-kubelet.conf");
  expect(kubelet.config.logging.verbosity).toBe(4);
});

test("the unit's watchdog is one that the agent takes", () => {
  expect(valuesOf("Type")).toEqual(["notify"]);
  expect(valuesOf("NotifyAccess")).toEqual(["main"]);
  const seconds = Number(/^(\d+)s$/.exec(valuesOf("WatchdogSec")[0] ?? "")?.[1]);
  const env = { NOTIFY_SOCKET: "/run/systemd/notify", WATCHDOG_USEC: String(seconds * 1_000_000) };
  expect(readSupervisor(env).watchdogMs).toBe(seconds * 1_000);
});

test("the unit is as patient with the end as the agent is, and gives it the files it asks for", () => {
  expect(valuesOf("TimeoutStopSec")).toEqual(["30s"]); // the agent drains for 10 s
  expect(Number(valuesOf("LimitNOFILE")[0])).toBeGreaterThanOrEqual(1_000_000);
  expect(valuesOf("KillMode")).toEqual(["process"]);
});

test("the drop-in for kubelet's unit says the same, and puts its command in the place of kubelet's", () => {
  const dropIn = readFileSync(new URL("../../../systemd/kubelet.service.d/20-nodelet.conf", import.meta.url), "utf8");
  const lines = dropIn.split("\n").filter((line) => /^\w+=/.test(line));
  expect(lines.filter((line) => !settings.includes(line))).toEqual(["ExecStart="]);
  expect(lines.filter((line) => line.startsWith("ExecStart="))).toEqual([
    "ExecStart=",
    `ExecStart=${valuesOf("ExecStart")[0]}`,
  ]);
});
