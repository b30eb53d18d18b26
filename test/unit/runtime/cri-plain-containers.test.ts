import { expect, test } from "vitest";
import { isDefaultPlain } from "../../../agent/runtime/cri/plain-containers.ts";

const runc = {
  runtimeType: "io.containerd.runc.v2",
  runtimePath: "",
  options: { BinaryName: "", SystemdCgroup: true },
};
const kata = { runtimeType: "io.containerd.kata.v2", options: {} };
const called = (BinaryName: unknown) => ({ ...runc, options: { BinaryName } });

const rows: [name: string, handlers: Record<string, unknown>, isPlain: boolean][] = [
  ["containerd's default", { default: runc, kata }, true],
  ["without options", { default: { runtimeType: "io.containerd.runc.v1", options: null } }, true],
  ["crun", { default: called("/usr/bin/crun") }, true],
  ["a virtual machine's", { default: kata, runc }, false],
  ["another program in runc's place", { default: called("/usr/bin/kata-runtime") }, false],
  ["a program that is none", { default: called(7) }, false],
  ["another shim in the place of runc's", { default: { ...runc, runtimePath: "/opt/shim" } }, false],
  ["one that is not there", { runc }, false],
  ["a pod can have a virtual machine by an annotation", { default: runc, untrusted: kata }, false],
  ["a pod can have runc by an annotation", { default: runc, untrusted: runc }, true],
];
test.each(rows)("default handler: %s", (_name, runtimes, isPlain) => {
  const containerd = { defaultRuntimeName: "default", runtimes };
  expect(isDefaultPlain(JSON.stringify({ containerd, sandboxImage: "pause" }))).toBe(isPlain);
});

test.each(["", "null", "[]", "{}", '{"containerd":{}}', '{"containerd":{"runtimes":[]}}', "[crio.runtime]\n"])(
  "nothing is known of what tells %j",
  (config) => {
    expect(isDefaultPlain(config)).toBe(false);
  },
);
