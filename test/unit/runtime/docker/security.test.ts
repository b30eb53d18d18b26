import { expect, test } from "vitest";
import { containerSecurity, containerUser } from "../../../../agent/runtime/docker/security.ts";
import type { ContainerSecurityContext } from "../../../../agent/runtime/port.ts";
import { daemonInfo, security } from "./config-support.ts";

const what = "container app in pod shop/web";
const bare = daemonInfo();
const withAppArmor = daemonInfo({ securityOptions: ["name=apparmor", "name=seccomp,profile=default"] });
const localhost = (localhostRef: string) => ({ type: "Localhost" as const, localhostRef });

const cases: {
  name: string;
  change: Partial<ContainerSecurityContext>;
  daemon?: typeof bare;
  profile?: string;
  want: object;
  absent?: string[];
}[] = [
  { name: "no capabilities asked for", change: {}, want: {}, absent: ["CapAdd", "CapDrop", "GroupAdd"] },
  {
    name: "capabilities in every spelling",
    change: { capabilities: { add: ["NET_ADMIN", "CAP_SYS_TIME", "net_raw"], drop: ["CHOWN"] } },
    want: { CapAdd: ["CAP_NET_ADMIN", "CAP_SYS_TIME", "CAP_NET_RAW"], CapDrop: ["CAP_CHOWN"] },
  },
  {
    name: "one that is added and dropped is dropped",
    change: { capabilities: { add: ["CAP_KILL", "CHOWN"], drop: ["KILL"] } },
    want: { CapAdd: ["CAP_CHOWN"], CapDrop: ["CAP_KILL"] },
  },
  {
    name: "dropping all wins over adding all, but not over adding one",
    change: { capabilities: { add: ["ALL", "NET_BIND_SERVICE"], drop: ["all"] } },
    want: { CapAdd: ["CAP_NET_BIND_SERVICE"], CapDrop: ["ALL"] },
  },
  {
    name: "all but one",
    change: { capabilities: { add: ["ALL"], drop: ["SYS_ADMIN"] } },
    want: { CapAdd: ["ALL"], CapDrop: ["CAP_SYS_ADMIN"] },
  },
  { name: "groups", change: { supplementalGroups: [1234, 5] }, want: { GroupAdd: ["1234", "5"] } },
  { name: "no new privileges", change: { noNewPrivs: true }, want: { SecurityOpt: ["no-new-privileges"] } },
  {
    name: "procMount Unmasked hides nothing, which is not the daemon's default",
    change: { maskedPaths: [], readonlyPaths: [] },
    want: { MaskedPaths: [], ReadonlyPaths: [] },
  },
  { name: "seccomp RuntimeDefault is the daemon's", change: {}, want: { SecurityOpt: [] } },
  {
    name: "no seccomp",
    change: { seccomp: { type: "Unconfined", localhostRef: "" } },
    want: { SecurityOpt: ["seccomp=unconfined"] },
  },
  { name: "nothing said of seccomp", change: { seccomp: undefined }, want: { SecurityOpt: ["seccomp=unconfined"] } },
  {
    name: "a profile of the node goes as text",
    change: { seccomp: localhost("/p.json") },
    profile: '{"defaultAction":"SCMP_ACT_ALLOW"}',
    want: { SecurityOpt: ['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}'] },
  },
  {
    name: "privileged containers are never confined by seccomp",
    change: { privileged: true, seccomp: localhost("/p.json"), readonlyRootfs: true },
    profile: "{}",
    want: { Privileged: true, ReadonlyRootfs: true, SecurityOpt: ["seccomp=unconfined"] },
  },
  {
    name: "AppArmor profile by name",
    change: { apparmor: localhost("my-profile") },
    daemon: withAppArmor,
    want: { SecurityOpt: ["apparmor=my-profile"] },
  },
  {
    name: "AppArmor RuntimeDefault is the daemon's",
    change: { apparmor: { type: "RuntimeDefault", localhostRef: "" } },
    daemon: withAppArmor,
    want: { SecurityOpt: [] },
  },
  {
    name: "no AppArmor",
    change: { apparmor: { type: "Unconfined", localhostRef: "" } },
    daemon: withAppArmor,
    want: { SecurityOpt: ["apparmor=unconfined"] },
  },
  {
    name: "no AppArmor where there is none",
    change: { apparmor: { type: "Unconfined", localhostRef: "" } },
    want: { SecurityOpt: [] },
  },
  {
    name: "SELinux",
    change: { selinux: { user: "", role: "r", type: "t", level: "s0:c1,c2" } },
    want: { SecurityOpt: ["label=role:r", "label=type:t", "label=level:s0:c1,c2"] },
  },
];
for (const { name, change, daemon = bare, profile, want, absent = [] } of cases) {
  test(`containerSecurity: ${name}`, () => {
    const got = containerSecurity(what, security(change), daemon, profile);
    expect(got).toMatchObject(want);
    for (const field of absent) expect(got).not.toHaveProperty(field);
  });
}

test("an AppArmor profile that cannot be enforced is refused", () => {
  const change = { apparmor: localhost("my-profile") };
  expect(() => containerSecurity(what, security(change), bare, undefined)).toThrow(
    `${what}: AppArmor profile "my-profile" cannot be enforced: the Docker daemon has no AppArmor`,
  );
});

test("a seccomp profile that nobody has read is refused, not left out", () => {
  const change = { seccomp: localhost("/var/lib/kubelet/seccomp/p.json") };
  expect(() => containerSecurity(what, security(change), bare, undefined)).toThrow(/p\.json was not read/);
});

test("strict groups are refused", () => {
  expect(() => containerSecurity(what, security({ supplementalGroupsPolicy: "Strict" }), bare, undefined)).toThrow(
    `${what}: supplementalGroupsPolicy Strict needs a CRI runtime`,
  );
});

const users: [string, Parameters<typeof containerUser>[1], string | undefined][] = [
  ["root", { runAsUser: 0, runAsUsername: undefined, runAsGroup: undefined }, "0"],
  ["a number and a group", { runAsUser: 1000, runAsUsername: undefined, runAsGroup: 0 }, "1000:0"],
  ["a name", { runAsUser: undefined, runAsUsername: "www", runAsGroup: undefined }, "www"],
  ["the number counts before the name", { runAsUser: 7, runAsUsername: "www", runAsGroup: undefined }, "7"],
  ["the image's", { runAsUser: undefined, runAsUsername: undefined, runAsGroup: undefined }, undefined],
];
for (const [name, of, want] of users) test(`containerUser: ${name}`, () => expect(containerUser(what, of)).toBe(want));

test("a group without a user is refused: it would make the image's user root", () => {
  const of = { runAsUser: undefined, runAsUsername: undefined, runAsGroup: 5 };
  expect(() => containerUser(what, of)).toThrow(`${what}: runAsGroup 5 needs a user: set runAsUser, too`);
});
