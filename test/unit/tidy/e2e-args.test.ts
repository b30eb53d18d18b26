import { expect, test } from "vitest";
import { type E2EArgs, parseE2EArgs } from "../../../.ci/e2e-args.ts";

const cases: { args: string[]; want: E2EArgs }[] = [
  { args: [], want: { runtime: undefined, rest: [] } },
  { args: ["--runtime", "docker"], want: { runtime: "docker", rest: [] } },
  { args: ["--runtime=containerd", "probes"], want: { runtime: "containerd", rest: ["probes"] } },
  {
    args: ["-t", "a=b", "--runtime", "docker", "--bail=1"],
    want: { runtime: "docker", rest: ["-t", "a=b", "--bail=1"] },
  },
];
test.each(cases)("npm run test:e2e -- $args", ({ args, want }) => expect(parseE2EArgs(args)).toEqual(want));

test.each([
  { args: ["--runtime", "podman"], why: '--runtime "podman": use one of containerd, docker' },
  { args: ["--runtime"], why: '--runtime "": use one of' },
  { args: ["--runtime=docker", "--runtime", "docker"], why: "there twice" },
])("npm run test:e2e -- $args is refused", ({ args, why }) => expect(() => parseE2EArgs(args)).toThrow(why));
