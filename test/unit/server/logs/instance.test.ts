import { expect, test } from "vitest";
import type { ContainerState, ContainerStatus, PodStatus } from "../../../../agent/kube/types.ts";
import { selectInstance } from "../../../../agent/server/logs/instance.ts";
import { HttpError } from "../../../../agent/server/port.ts";

const one = (state: ContainerState | undefined, lastState?: ContainerState, containerID?: string): PodStatus => ({
  containerStatuses: [
    {
      name: "c",
      ready: false,
      restartCount: 0,
      image: "",
      imageID: "",
      ...(state === undefined ? {} : { state }),
      ...(lastState === undefined ? {} : { lastState }),
      ...(containerID === undefined ? {} : { containerID }),
    },
  ],
});
const named = (name: string): ContainerStatus => ({
  ...(one({ running: {} }, undefined, `x://${name}`).containerStatuses?.[0] as ContainerStatus),
  name,
});
const ended = (containerID?: string): ContainerState => ({
  terminated: { exitCode: 0, ...(containerID === undefined ? {} : { containerID }) },
});
const waiting = (reason: string): ContainerState => ({ waiting: { reason } });
const who = `container "c" in pod "p"`;

const cases: { name: string; status: PodStatus | undefined; previous?: boolean; want: string }[] = [
  { name: "running", status: one({ running: {} }, ended("x://0"), "x://1"), want: "x://1" },
  { name: "ended", status: one(ended("x://1"), ended("x://0"), "x://1"), want: "x://1" },
  { name: "ended without having started", status: one(ended(), ended("x://0")), want: "x://0" },
  { name: "ended without any that started", status: one(ended()), want: `${who} is terminated` },
  { name: "waits for its restart", status: one(waiting("CrashLoopBackOff"), ended("x://0")), want: "x://0" },
  { name: "its last has no ID", status: one(waiting("CrashLoopBackOff"), ended()), want: `${who} is terminated` },
  {
    name: "previous of a running one",
    status: one({ running: {} }, ended("x://0"), "x://1"),
    previous: true,
    want: "x://0",
  },
  {
    name: "previous where there is none",
    status: one({ running: {} }, undefined, "x://1"),
    previous: true,
    want: `previous terminated ${who} not found`,
  },
  {
    name: "previous without an ID",
    status: one({ running: {} }, ended(""), "x://1"),
    previous: true,
    want: `previous terminated ${who} not found`,
  },
  {
    name: "being created",
    status: one(waiting("ContainerCreating")),
    want: `${who} is waiting to start: ContainerCreating`,
  },
  {
    name: "no image",
    status: one(waiting("ErrImagePull")),
    want: `${who} is waiting to start: image can't be pulled`,
  },
  {
    name: "no image for long",
    status: one(waiting("ImagePullBackOff")),
    want: `${who} is waiting to start: trying and failing to pull image`,
  },
  { name: "a state that says nothing", status: one({}), want: `${who} is waiting to start - no logs yet` },
  { name: "no state", status: one(undefined), want: `${who} is waiting to start - no logs yet` },
  { name: "no status of it yet", status: {}, want: `${who} is not available` },
  { name: "no status at all", status: undefined, want: `${who} is not available` },
  { name: "an init container", status: { initContainerStatuses: [named("c")] }, want: "x://c" },
  { name: "an ephemeral container", status: { ephemeralContainerStatuses: [named("b"), named("c")] }, want: "x://c" },
];

for (const { name, status, previous = false, want } of cases) {
  test(`instance whose log is read: ${name}`, () => {
    const select = () => selectInstance("p", status, "c", previous);
    if (want.startsWith("x://")) {
      expect(select()).toBe(want);
    } else {
      expect(select).toThrow(new HttpError(400, want));
      expect(select).toThrow(expect.objectContaining({ status: 400 }));
    }
  });
}
