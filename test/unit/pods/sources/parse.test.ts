import { describe, expect, test } from "vitest";
import { messageOf } from "../../../../agent/lib/errors.ts";
import { parsePod, parsePods } from "../../../../agent/pods/sources/parse.ts";
import { manifestOf } from "./support.ts";

const yaml = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: null}
spec:
  hostNetwork: on
  unheardOf: {some: thing}
  containers:
  - name: app
    image: busybox
    command: [sleep, "30"]
    env: [{name: TIME, value: 12:30:45}]
    resources: {limits: {cpu: 2, memory: 1Gi}}
`;

describe("parsePod", () => {
  test("reads YAML as Kubernetes does: words for booleans, no sexagesimal numbers, nulls are not set", () => {
    const { pods, warnings } = parsePod(yaml);
    expect(warnings).toEqual([]);
    expect(pods).toMatchObject([
      {
        metadata: { name: "web" },
        spec: { hostNetwork: true, containers: [{ env: [{ value: "12:30:45" }], resources: { limits: { cpu: 2 } } }] },
      },
    ]);
    expect(pods[0]?.metadata).not.toHaveProperty("labels");
    expect(pods[0]?.spec).toHaveProperty("unheardOf");
  });

  test("reads JSON, and YAML that begins like it", () => {
    expect(parsePod(JSON.stringify(manifestOf())).pods).toEqual([manifestOf()]);
    const flow = "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: []}}";
    expect(parsePod(flow).pods).toMatchObject([{ metadata: { name: "web" } }]);
  });

  test("takes the last of two equal keys and the first of two documents, and warns of the latter", () => {
    expect(parsePod(`${yaml}\n  restartPolicy: Always\n  restartPolicy: Never`).pods[0]?.spec.restartPolicy).toBe(
      "Never",
    );
    const { pods, warnings } = parsePod(`---\n${yaml}\n---\n${yaml.replace("name: web", "name: other")}`);
    expect(pods.map(({ metadata }) => metadata.name)).toEqual(["web"]);
    expect(warnings).toEqual(["only the first of its 2 documents is used: a file holds one Pod"]);
  });

  const bad: [what: string, text: string, message: string | RegExp][] = [
    ["nothing", " \n", "is empty"],
    ["comments only", "# later\n---\n", "is empty"],
    ["half a file", '{"apiVersion": "v1", "kind": "Pod", "meta', /^is not valid YAML: /],
    ["no YAML", "a: [1\nb: 2", /^is not valid YAML: .*line 2/],
    ["no object", "just words", "the document: must be a Pod"],
    [
      "another kind",
      "apiVersion: apps/v1\nkind: Deployment",
      'must be apiVersion v1, kind Pod, not apiVersion "apps/v1", kind "Deployment"',
    ],
    ["no kind", "metadata: {name: web}", "must be apiVersion v1, kind Pod, not apiVersion nothing, kind nothing"],
    ["no name", "apiVersion: v1\nkind: Pod\nspec: {containers: []}", "metadata.name: must be set"],
    [
      "no containers",
      "apiVersion: v1\nkind: Pod\nmetadata: {name: a}",
      "spec.containers: must be a list of containers",
    ],
    [
      "a number for a string",
      yaml.replace('"30"', "30"),
      "spec.containers[0].command[1]: must be a string, not a number",
    ],
    [
      "a string for a list",
      yaml.replace('[sleep, "30"]', "sleep 30"),
      "spec.containers[0].command: must be a list, not a string",
    ],
    [
      "a string for a number",
      yaml.replace("hostNetwork: on", 'terminationGracePeriodSeconds: "5"'),
      "spec.terminationGracePeriodSeconds: must be a whole number, not a string",
    ],
    [
      "an object for a quantity",
      yaml.replace("cpu: 2", "cpu: {a: 1}"),
      'spec.containers[0].resources.limits.cpu: must be a quantity such as "500m" or 2, not an object',
    ],
  ];
  test.each(bad)("says what is wrong with %s", (_what, text, message) => {
    expect(() => parsePod(text)).toThrow(message);
  });

  // What people mistype may be a password, and messages go to the log and to events.
  const secrets: [what: string, text: string][] = [
    ["a value of another type", yaml.replace("hostNetwork: on", "hostNetwork: hunter2")],
    ["a list where a string belongs", yaml.replace("value: 12:30:45", "value: [hunter2]")],
    ["an object where a string belongs", yaml.replace("value: 12:30:45", "value: {hunter2: x}")],
    ["a kind", "apiVersion: v1\nkind: hunter2 hunter2"],
    ["a kind that is an object", "apiVersion: v1\nkind: {hunter2: x}"],
    ["an alias without an anchor", yaml.replace("value: 12:30:45", "value: *hunter2")],
    ["an unknown directive", `%hunter2\n${yaml}}}`],
    ["a quote without an end", yaml.replace("value: 12:30:45", 'value: "hunter2')],
    ["a key that is no string", `${yaml}\n? [hunter2]\n: a`],
    ["a merge of what is no object", `${yaml}\n<<: hunter2`],
  ];
  test.each(secrets)("does not show %s", (_what, text) => {
    let message = "";
    try {
      parsePod(text);
    } catch (err) {
      message = messageOf(err);
    }
    expect(message).toMatch(/must be|is not valid YAML/);
    expect(message).not.toContain("hunter2");
  });

  test("aliases that multiply do not fill the memory", () => {
    const lines = Array.from({ length: 30 }, (_, i) => `a${i + 1}: &a${i + 1} [*a${i}, *a${i}, *a${i}, *a${i}]`);
    expect(() => parsePod(["a0: &a0 [x]", ...lines].join("\n"))).toThrow(/is not valid YAML/);
  });
});

describe("parsePods", () => {
  const parse = (value: unknown) => parsePods(JSON.stringify(value)).listed;

  test("reads a list, whose items need not say what they are", () => {
    const { apiVersion: _, kind: __, ...bare } = manifestOf();
    const list = { apiVersion: "v1", kind: "PodList", items: [bare, manifestOf({}, { name: "two", namespace: "ns" })] };
    expect(parse(list).map(({ key }) => key)).toEqual(["default/web", "ns/two"]);
    expect(parse({ apiVersion: "v1", kind: "PodList" })).toEqual([]);
    expect(parse(manifestOf())).toEqual([{ key: "default/web", manifest: manifestOf() }]);
  });

  test("names the item that is wrong, and reads the others", () => {
    const list = { apiVersion: "v1", kind: "PodList", items: [5, manifestOf(), manifestOf({ hostNetwork: "yes" })] };
    expect(parse(list)).toEqual([
      { key: "default/", manifest: { problem: "items[0]: must be a Pod" } },
      { key: "default/web", manifest: manifestOf() },
      { key: "default/web", manifest: { problem: expect.stringContaining("items[2].spec.hostNetwork: must be") } },
    ]);
  });

  test("refuses what is neither a Pod nor a list of them", () => {
    expect(() => parse({ apiVersion: "v2", kind: "PodList" })).toThrow("apiVersion must be v1");
    expect(() => parse({ apiVersion: "v1", kind: "PodList", items: 5 })).toThrow("items: must be a list");
    expect(() => parse(manifestOf({ hostNetwork: "yes" }))).toThrow("spec.hostNetwork: must be true or false");
  });
});
