import { expect, test } from "vitest";
import { defaultPullPolicy, fullNameOf, parseImageName, withDefaultTag } from "../../../agent/runtime/images-name.ts";

const hex = "a".repeat(64);

const good: { image: string; repository: string; tag?: string; digest?: string; toRuntime: string }[] = [
  { image: "busybox", repository: "docker.io/library/busybox", tag: "latest", toRuntime: "busybox:latest" },
  { image: "busybox:1.36", repository: "docker.io/library/busybox", tag: "1.36", toRuntime: "busybox:1.36" },
  { image: "team/app", repository: "docker.io/team/app", tag: "latest", toRuntime: "team/app:latest" },
  { image: "quay.io/a/b/c:v1", repository: "quay.io/a/b/c", tag: "v1", toRuntime: "quay.io/a/b/c:v1" },
  { image: "localhost/app", repository: "localhost/app", tag: "latest", toRuntime: "localhost/app:latest" },
  { image: "host:5000/app", repository: "host:5000/app", tag: "latest", toRuntime: "host:5000/app:latest" },
  { image: "[::1]:5000/app:2", repository: "[::1]:5000/app", tag: "2", toRuntime: "[::1]:5000/app:2" },
  {
    image: `app@sha256:${hex}`,
    repository: "docker.io/library/app",
    digest: `sha256:${hex}`,
    toRuntime: `app@sha256:${hex}`,
  },
  {
    image: `q.io/app:v1@sha256:${hex}`,
    repository: "q.io/app",
    tag: "v1",
    digest: `sha256:${hex}`,
    toRuntime: `q.io/app:v1@sha256:${hex}`,
  },
  {
    image: "index.docker.io/nginx:1",
    repository: "docker.io/library/nginx",
    tag: "1",
    toRuntime: "index.docker.io/nginx:1",
  },
  { image: "UPPER/app", repository: "UPPER/app", tag: "latest", toRuntime: "UPPER/app:latest" },
  { image: "a__b/c-d.e--f:T", repository: "docker.io/a__b/c-d.e--f", tag: "T", toRuntime: "a__b/c-d.e--f:T" },
];

for (const { image, repository, tag = "", digest = "", toRuntime } of good) {
  test(`${image} names ${repository}`, () => {
    const name = parseImageName(image);
    expect(name).toEqual({ repository, tag, digest });
    if (typeof name !== "string") expect(withDefaultTag(image, name)).toBe(toRuntime);
  });
}

const bad = [
  "",
  " busybox",
  "Busybox",
  "docker.io/Library/busybox",
  "app:",
  "app:-tag",
  `app:${"t".repeat(129)}`,
  "app@sha256:1234",
  `app@sha256:${hex.toUpperCase()}`,
  `app@md5:${"a".repeat(32)}`,
  "a//b",
  "-host/app",
  "a..b",
  "host:port/app",
  "https://quay.io/app",
  hex,
  "x".repeat(256),
];

for (const image of bad) {
  test(`${JSON.stringify(image.slice(0, 40))} is refused with a reason that quotes it`, () => {
    const why = parseImageName(image);
    expect(why).toContain(JSON.stringify(image));
  });
}

test("capitals in a repository are called by name", () => {
  expect(parseImageName("quay.io/Team/app")).toContain("repository name (Team/app) must be lowercase");
});

const policies = [
  { image: "app", want: "Always" },
  { image: "app:latest", want: "Always" },
  { image: "app:1", want: "IfNotPresent" },
  { image: `app@sha256:${hex}`, want: "IfNotPresent" },
  { image: `app:latest@sha256:${hex}`, want: "Always" },
  { image: "not an image", want: "IfNotPresent" },
];
for (const { image, want } of policies) {
  test(`the pull policy of ${image} is ${want} unless said otherwise`, () =>
    expect(defaultPullPolicy(image)).toBe(want));
}

test("names in full: a digest decides, and what is no name stays", () => {
  const cases: [string, string][] = [
    ["busybox", "docker.io/library/busybox:latest"],
    ["host:5000/app:2", "host:5000/app:2"],
    [`app:1@sha256:${hex}`, `docker.io/library/app@sha256:${hex}`],
    ["Not A Name", "Not A Name"],
    [hex, hex],
  ];
  for (const [image, want] of cases) expect(fullNameOf(image), image).toBe(want);
});
