import { cadvisorFlagFields, kubeletFlagFields } from "./kubelet-flags.ts";
import { kubeletSections } from "./kubelet-config.ts";
import { proxyFlagFields, proxySections } from "./proxy-config.ts";
import { show } from "./problems.ts";
import { type Field, type FieldAt, fieldsOf, type Section, type Support } from "./schema.ts";

/** Flags that are no fields of a configuration file. */
export const kubeletStart: Section = { title: "Start", fields: kubeletFlagFields, flagsOnly: true };
export const proxyStart: Section = { title: "Start", fields: proxyFlagFields, flagsOnly: true };

const width = 100;
const docColumn = 44;

/** `nodelet --help`. */
export function kubeletHelp(): string {
  const intro = `nodelet is a Kubernetes node agent. It takes the place of kubelet and, with --proxy-config, of
kube-proxy.

Usage:
  nodelet --config kubelet.yaml --kubeconfig kubelet.conf [--proxy-config kube-proxy.yaml] [flags]
  nodelet proxy --config kube-proxy.yaml [flags]   only the service proxy; see nodelet proxy --help
  nodelet explain pod NAMESPACE/NAME               why a pod of the running agent does not start
  nodelet pods                                     its pods and what they wait for; see its --help
  nodelet rules NAMESPACE/SERVICE                  what the kernel has for a service; see its --help
  nodelet trace SOURCE ADDRESS:PORT                where a packet goes, and why
`;
  return render(intro, [kubeletStart, ...kubeletSections], [cadvisorFlagFields]);
}

/** `nodelet proxy --help`. */
export function proxyHelp(): string {
  const intro = `nodelet proxy runs the service proxy alone. It takes the place of kube-proxy.

Usage:
  nodelet proxy --config kube-proxy.yaml [flags]
  nodelet proxy --cleanup
`;
  return render(intro, [proxyStart, ...proxySections], []);
}

function render(intro: string, sections: readonly Section[], hidden: readonly Section["fields"][]): string {
  const parts = sections.map(({ title, fields }) => {
    const lines = [...fieldsOf(fields)].flatMap((at) => flagLines(at));
    return lines.length === 0 ? "" : `\n${title}:\n${lines.join("\n")}\n`;
  });
  const silent = hidden.flatMap((fields) => [...fieldsOf(fields)].map(({ flag }) => `--${flag}`));
  const rest =
    silent.length === 0
      ? ""
      : `\nAccepted without effect:\n${wrap(silent.join(" "), width - 2)
          .map((line) => `  ${line}`)
          .join("\n")}\n`;
  const other = `\nOther:\n${entry("-h, --help", "this text")}\n${entry("--version", "the version; --version=raw: all of it")}\n`;
  return `${intro}${parts.join("")}${other}${rest}\n(later): accepted and checked, but the feature is not there yet; (partly): in part.\n`;
}

function flagLines({ flag, field }: FieldAt): string[] {
  if (flag === undefined || field.doc === "Windows only") return [];
  const { shorthand } = field.options;
  const type = field.kind.type === "bool" ? "" : ` ${field.kind.type}`;
  const name = `${shorthand === undefined || shorthand === flag ? "" : `-${shorthand}, `}${shorthand === flag ? "-" : "--"}${flag}${type}`;
  return [entry(name, `${field.doc}${defaultText(field)}${mark(field.support)}`)];
}

function mark(support: Support): string {
  return support === "later" || support === "partly" ? ` (${support})` : "";
}

function defaultText({ kind, default: value, options }: Field<unknown>): string {
  if (value === undefined || options.secret === true) return "";
  if (kind.isZero(value) && kind.type !== "int") return "";
  const text = kind.encode(value);
  return ` (default ${typeof text === "string" ? text : Array.isArray(text) ? text.join(",") : show(text)})`;
}

function entry(name: string, doc: string): string {
  const [first = "", ...more] = wrap(doc, width - docColumn);
  const indent = " ".repeat(docColumn);
  const head = name.length + 4 > docColumn ? `  ${name}\n${indent}${first}` : `  ${name}`.padEnd(docColumn) + first;
  return [head, ...more.map((line) => indent + line)].join("\n");
}

function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = word;
    } else {
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  return [...lines, line];
}

/**
 * What does not work yet, as lists for the README: each field or flag with what it is for.
 * @returns Markdown
 */
export function unsupportedFieldsMarkdown(sections: readonly Section[]): string {
  return sections
    .flatMap(({ title, fields, flagsOnly = false }) => {
      const lines = [...fieldsOf(fields)].flatMap(({ path, flag, field: { support, doc, options } }) => {
        if (support !== "later" && support !== "partly") return [];
        const name = flagsOnly ? `--${flag}` : path.join(".");
        return [`- \`${name}\`: ${doc}${support === "partly" ? ` (${options.note})` : ""}`];
      });
      return lines.length === 0 ? [] : [`**${title}**\n\n${lines.join("\n")}\n`];
    })
    .join("\n");
}
