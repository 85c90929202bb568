"""Writes image archives with odd documents: corpus.py DIRECTORY.

Each is a small image of one file in which one thing is odd; the name says which. `verdicts.txt` has the results.
"""
import copy, gzip, hashlib, io, json, os, platform, sys, tarfile

OUT = sys.argv[1]
ARCH = {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine())
GONE = object()


def row(name, archive):
    with open(os.path.join(OUT, name.replace('/', '__') + '.tar'), 'wb') as f:
        f.write(archive)


def sha(b): return hashlib.sha256(b).hexdigest()


def js(x): return x if isinstance(x, bytes) else json.dumps(x).encode()


def tar(*entries):
    """An entry is (name, bytes), or (name, target, type) for a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=tarfile.GNU_FORMAT) as t:
        for name, what, *kind in entries:
            info = tarfile.TarInfo(name)
            info.mtime = 1600000000
            if kind:
                info.type, info.linkname = kind[0], what
                t.addfile(info)
            else:
                info.size = len(what)
                t.addfile(info, io.BytesIO(what))
    return out.getvalue()


def merged(base, over):
    base = copy.deepcopy(base)
    for k, v in over.items():
        if v is GONE:
            base.pop(k, None)
        else:
            base[k] = v
    return base


A, B = tar(('a', b'hello')), tar(('b', b'there'))
DIFF = 'sha256:' + sha(A)


def config(layers=(A,), **over):
    base = {'architecture': ARCH, 'os': 'linux', 'config': {}, 'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + sha(x) for x in layers]}}
    return merged(base, over)


def spliced(**raw):
    """A configuration in which some values are JSON text, for what json.dumps can't write."""
    text = json.dumps(config(**{k: '@' + k for k in raw}))
    for k, v in raw.items():
        text = text.replace('"@%s"' % k, v)
    return text.encode('utf-8', 'surrogateescape')


def docker(cfg=None, layers=(A,), blobs=None, entry={}, manifest=None, files=(), links=(), path=None):
    """A docker-archive. `manifest` instead of a list of the one entry."""
    cfg = js(config(layers) if cfg is None else cfg)
    blobs = layers if blobs is None else blobs
    path = path or sha(cfg) + '.json'
    e = merged({'Config': path, 'RepoTags': ['t:1'], 'Layers': ['%d/layer.tar' % i for i in range(len(blobs))]}, entry)
    m = js([e]) if manifest is None else js(manifest(e) if callable(manifest) else manifest)
    return tar(*[('%d/layer.tar' % i, b) for i, b in enumerate(blobs)], (path, cfg), *files, *links, ('manifest.json', m))


MT = 'application/vnd.oci.image.'
NAME, REF = 'io.containerd.image.name', 'org.opencontainers.image.ref.name'
MANIFEST, INDEX, CONFIG = MT + 'manifest.v1+json', MT + 'index.v1+json', MT + 'config.v1+json'
LAYER = MT + 'layer.v1.tar'


def desc(kind, b, **over):
    return merged({'mediaType': kind, 'digest': 'sha256:' + sha(b), 'size': len(b)}, over)


def blob(b): return 'blobs/sha256/' + sha(b), b


def oci(cfg=None, layers=(A,), manifest={}, entry={}, index={}, conf={}, layer={}, blobs=(), raw_manifest=None, raw_index=None, layout=b'{"imageLayoutVersion":"1.0.0"}', files=(),
        without=(), prefix=''):
    """An archive of an OCI layout with one image, and dictionaries of what differs."""
    cfg = js(config(layers) if cfg is None else cfg)
    m = merged({'schemaVersion': 2, 'mediaType': MANIFEST, 'config': desc(CONFIG, cfg, **conf), 'layers': [desc(LAYER, x, **layer) for x in layers]}, manifest)
    m = js(m) if raw_manifest is None else raw_manifest(m)
    e = merged(desc(MANIFEST, m, annotations={NAME: 'docker.io/library/t:1'}), entry)
    i = merged({'schemaVersion': 2, 'mediaType': INDEX, 'manifests': [e]}, index(e) if callable(index) else index)
    i = js(i) if raw_index is None else raw_index(i)
    all_blobs = [blob(b) for b in (*layers, cfg, m, *blobs) if b not in without]
    head = [] if layout is None else [('oci-layout', js(layout))]
    return tar(*[(prefix + n, b) for n, b in (*head, *all_blobs, *files, ('index.json', i))])


def image(arch=ARCH, layers=(A,), os_='linux'):
    """The blobs of another image: its manifest, and all."""
    cfg = js(config(layers, architecture=arch, os=os_, author=arch))
    m = js({'schemaVersion': 2, 'mediaType': MANIFEST, 'config': desc(CONFIG, cfg), 'layers': [desc(LAYER, x) for x in layers]})
    return m, [*layers, cfg, m]


# Configurations, in docker-archives.

def cfgs(prefix, cases):
    for name, over in cases.items():
        row('config/%s%s' % (prefix, name), docker(over if isinstance(over, bytes) else config(**over)))


cfgs('', {'plain': {}})
cfgs('null/', {
    **{k: {k: None} for k in ('architecture', 'os', 'config', 'rootfs', 'history', 'created', 'author', 'variant', 'os.version', 'os.features', 'container_config', 'id', 'parent', 'Size', 'x')},
    **{k: {'config': {k: None}} for k in ('Env', 'Cmd', 'Entrypoint', 'Labels', 'Volumes', 'ExposedPorts', 'User', 'WorkingDir', 'StopSignal', 'StopTimeout', 'Healthcheck', 'OnBuild', 'Shell', 'Tty')},
    'in-Env': {'config': {'Env': ['A=1', None]}}, 'in-Cmd': {'config': {'Cmd': [None]}}, 'in-Labels': {'config': {'Labels': {'a': None}}},
    'in-Volumes': {'config': {'Volumes': {'/v': None}}}, 'in-ExposedPorts': {'config': {'ExposedPorts': {'80/tcp': None}}}, 'in-history': {'history': [None]},
    'empty_layer': {'history': [{'created_by': 'x', 'empty_layer': None}]}, 'rootfs.type': {'rootfs': {'type': None, 'diff_ids': [DIFF]}},
})
cfgs('missing/', {k: {k: GONE} for k in ('architecture', 'os', 'config', 'rootfs')})
cfgs('missing/', {'rootfs.type': {'rootfs': {'diff_ids': [DIFF]}}, 'both': {'architecture': GONE, 'os': GONE}})
cfgs('platform/', {'os-empty': {'os': ''}, 'os-Linux': {'os': 'Linux'}, 'os-windows': {'os': 'windows'}, 'architecture-empty': {'architecture': ''}, 'architecture-other': {'architecture': 's390x'},
    'architecture-odd': {'architecture': 'Z80 (odd)'}, 'variant-number': {'variant': 8}, 'os.features-text': {'os.features': 'x'}})
cfgs('rootfs/', {'type-other': {'rootfs': {'type': 'layers+base', 'diff_ids': [DIFF]}}, 'type-number': {'rootfs': {'type': 1, 'diff_ids': [DIFF]}}, 'list': {'rootfs': [DIFF]},
    'diff_ids-text': {'rootfs': {'type': 'layers', 'diff_ids': DIFF}}, 'diff_id-null': {'rootfs': {'type': 'layers', 'diff_ids': [None]}}, 'diff_id-upper': {'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + sha(A).upper()]}},
    'diff_id-bare': {'rootfs': {'type': 'layers', 'diff_ids': [sha(A)]}}, 'diff_id-sha512': {'rootfs': {'type': 'layers', 'diff_ids': ['sha512:' + hashlib.sha512(A).hexdigest()]}},
    'diff_id-wrong': {'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + sha(B)]}}, 'diff_ids-more': {'rootfs': {'type': 'layers', 'diff_ids': [DIFF, DIFF]}},
    'diff_ids-fewer': {'rootfs': {'type': 'layers', 'diff_ids': []}}})
cfgs('history/', {'empty': {'history': []}, 'short': {'history': [{'created_by': 'x', 'empty_layer': True}]}, 'long': {'history': [{'created_by': 'x'}, {'created_by': 'y'}]},
    'empty-step': {'history': [{}]}, 'text': {'history': 'x'}, 'of-texts': {'history': ['x']}, 'created-odd': {'history': [{'created': 'yesterday'}]}, 'created-empty': {'history': [{'created': ''}]},
    'empty_layer-text': {'history': [{'empty_layer': 'true'}]}, 'created_by-list': {'history': [{'created_by': ['x']}]}, 'author-number': {'history': [{'author': 1}]}})
cfgs('created/', {'date': {'created': '2020-01-01'}, 'word': {'created': 'yesterday'}, 'empty': {'created': ''}, 'number': {'created': 1600000000}, 'nanoseconds': {'created': '2020-01-01T00:00:00.123456789+02:00'},
    'year-0': {'created': '0001-01-01T00:00:00Z'}})
cfgs('run/', {name: {'config': c} for name, c in {
    'cmd-text': {'Cmd': 'a b'}, 'entrypoint-text': {'Entrypoint': '/x'}, 'cmd-number': {'Cmd': [1]}, 'env-text': {'Env': 'A=1'}, 'env-object': {'Env': {'A': '1'}}, 'env-odd': {'Env': ['A', '=', '', 'A=1', 'A=2']},
    'labels-list': {'Labels': ['a']}, 'labels-number': {'Labels': {'a': 1}}, 'volumes-list': {'Volumes': ['/v']}, 'volumes-text': {'Volumes': {'/v': 'x'}}, 'volumes-full': {'Volumes': {'/v': {'x': 1}}},
    'volumes-odd': {'Volumes': {'': {}, 'rel': {}, '/a/../b': {}, '/ü\n': {}}}, 'ports-list': {'ExposedPorts': ['80/tcp']}, 'ports-odd': {'ExposedPorts': {'x': {}, '80': {}, '80/tcp/udp': {}, '': {}}},
    'user-number': {'User': 1000}, 'workdir-relative': {'WorkingDir': 'a/b'}, 'workdir-list': {'WorkingDir': ['/']}, 'stopsignal-number': {'StopSignal': 9}, 'stoptimeout-text': {'StopTimeout': '10'},
    'stoptimeout-fraction': {'StopTimeout': 1.0}, 'healthcheck-text': {'Healthcheck': 'x'}, 'healthcheck-test-text': {'Healthcheck': {'Test': 'x'}}, 'healthcheck-interval-text': {'Healthcheck': {'Interval': '30s'}},
    'onbuild-text': {'OnBuild': 'RUN x'}, 'shell-text': {'Shell': '/bin/sh'}, 'tty-text': {'Tty': 'true'}, 'hostname-number': {'Hostname': 5}, 'unknown': {'Frobnicate': [1, {'x': None}]},
    'lower-case': {'cmd': ['x'], 'env': ['A=1'], 'workingdir': '/w'}, 'upper-case': {'CMD': ['x'], 'USER': 'u'}}.items()})
cfgs('run/', {'list': {'config': []}, 'text': {'config': 'x'}})
cfgs('legacy/', {'id': {'id': 'x'}, 'id-number': {'id': 5}, 'parent': {'parent': 'sha256:' + '0' * 64}, 'parent-number': {'parent': 5}, 'container_config-cmd-text': {'container_config': {'Cmd': 'x'}},
    'container_config-env-number': {'container_config': {'Env': 5}}, 'size-fraction': {'Size': 1.5}, 'size-negative': {'Size': -1}, 'docker_version-number': {'docker_version': 20}, 'author-number': {'author': 1}})
cfgs('json/', {
    'twice-merged': spliced(config='{"Cmd": ["a"]}, "config": {"User": "u"}'), 'twice-list': spliced(config='{"Cmd": ["a"], "Cmd": ["b"], "Env": ["A=1", "B=2"], "Env": [null]}'),
    'twice-null': spliced(config='{"Cmd": ["a"]}, "config": null'), 'twice-rootfs-null': spliced(rootfs='{"diff_ids": ["%s"]}, "rootfs": null' % DIFF), 'case': json.dumps(config()).replace('"config"', '"CONFIG"').replace(
        '"rootfs"', '"RootFS"').replace('"diff_ids"', '"DIFF_IDS"').encode(), 'long-s': json.dumps(config()).replace('"rootfs"', '"rootf\u017f"').encode(),
    'long-s-as-is': json.dumps(config()).encode().replace(b'"rootfs"', '"rootf\u017f"'.encode()), 'escaped-name': json.dumps(config()).replace('"rootfs"', '"\\u0072ootfs"').encode(),
    'lone-surrogate': spliced(author='"\\ud800"'), 'lone-low-surrogate': spliced(author='"\\udc00x"'), 'bad-utf8': spliced(author='"\udcff\udce2\udc82"'), 'bad-utf8-in-a-name': spliced(author='"x", "\udcff": 1'),
    'control-character': spliced(author='"\x01"'), 'tab-in-text': spliced(author='"a\tb"'), 'newline-after': json.dumps(config()).encode() + b'\n\n', 'space-before': b' \r\n\t' + json.dumps(config()).encode(),
    'more-after': json.dumps(config()).encode() + b'{}', 'nul-after': json.dumps(config()).encode() + b'\0', 'bom': b'\xef\xbb\xbf' + json.dumps(config()).encode(), 'utf-16': json.dumps(config()).encode('utf-16'),
    'comma-at-end': json.dumps(config()).encode()[:-1] + b',}', 'comment': json.dumps(config()).encode()[:-1] + b'/* x */}', 'cut': json.dumps(config()).encode()[:-1], 'empty': b'', 'null': b'null', 'list': b'[]',
    'nested-5000': spliced(x='[' * 5000 + ']' * 5000), 'nested-10001': spliced(x='[' * 10001 + ']' * 10001), 'large-number': spliced(x='1e99999'), 'large-integer': spliced(x='123456789012345678901234567890'),
    'leading-zero': spliced(x='01'), 'nan': spliced(x='NaN'), 'single-quotes': spliced(author="'x'"), 'html': spliced(author='"<&>\u2028"'), 'indented': json.dumps(config(), indent=8).encode(), 'large': json.dumps(config(x='y' * 3000000)).encode(),
})

# Images without layers.

for name, rootfs in {'empty': {'type': 'layers', 'diff_ids': []}, 'null': {'type': 'layers', 'diff_ids': None}, 'absent': {'type': 'layers'}, 'rootfs-empty': {}, 'rootfs-null': None, 'rootfs-absent': GONE}.items():
    row('no-layers/' + name, docker(config((), rootfs=rootfs), ()))
    row('no-layers/oci-' + name, oci(config((), rootfs=rootfs), ()))
row('no-layers/Layers-null', docker(config(()), (), entry={'Layers': None}))
row('no-layers/Layers-absent', docker(config(()), (), entry={'Layers': GONE}))
row('no-layers/oci-layers-null', oci(config(()), (), manifest={'layers': None}))
row('no-layers/oci-layers-absent', oci(config(()), (), manifest={'layers': GONE}))
row('no-layers/history', docker(config((), history=[{'created_by': 'LABEL a=b', 'empty_layer': True}]), ()))
row('no-layers/history-of-a-layer', docker(config((), history=[{'created_by': 'COPY'}]), ()))

# manifest.json of docker-archives.

for name, tags in {'null': None, 'absent': GONE, 'empty': [], 'text': 't:1', 'of-null': [None], 'of-empty': [''], 'none': ['<none>:<none>'], 'upper': ['Upper/x:1'], 'without-tag': ['t'], 'twice': ['t:1', 't:1'],
        'two': ['t:1', 'u:2'], 'space': ['a b:1'], 'no-tag-behind-colon': ['t:'], 'digest': ['t@sha256:' + '0' * 64], 'tag-and-digest': ['t:1@sha256:' + '0' * 64], 'path': ['../x:1'], 'full': ['docker.io/library/t:1'],
        'port': ['localhost:5000/t:1'], 'good-and-bad': ['t:1', 'Bad:1'], 'id': ['0' * 64 + ':1'], 'number': [1], 'object': {}}.items():
    row('tags/' + name, docker(entry={'RepoTags': tags}))
C = js(config())
for name, (path, at) in {'dot': ('./c.json', 'c.json'), 'stored-with-dot': ('c.json', './c.json'), 'slash': ('/c.json', 'c.json'), 'up': ('../c.json', 'c.json'), 'up-and-down': ('x/../c.json', 'c.json'), 'deep': ('a/b/c.json', 'a/b/c.json'),
        'blobs': ('blobs/sha256/' + sha(C), 'blobs/sha256/' + sha(C)), 'other-digest': ('0' * 64 + '.json', '0' * 64 + '.json'), 'missing': ('d.json', 'c.json'), 'null': (None, 'c.json'), 'empty': ('', 'c.json'),
        'number': (1, 'c.json'), 'called-like-a-layer': ('x/layer.tar', 'x/layer.tar')}.items():
    row('archive/config-' + name, docker(entry={'Config': path}, path=at))
row('archive/config-symlink', docker(entry={'Config': 'd.json'}, path='c.json', links=[('d.json', 'c.json', tarfile.SYMTYPE)]))
row('archive/config-hard-link', docker(entry={'Config': 'd.json'}, path='c.json', links=[('d.json', 'c.json', tarfile.LNKTYPE)]))
for name, (layers, files, links) in {'dot': (['./0/layer.tar'], [], []), 'slash': (['/0/layer.tar'], [], []), 'missing': (['1/layer.tar'], [], []), 'null': ([None], [], []), 'text': ('0/layer.tar', [], []), 'more': (['0/layer.tar'] * 2, [], []),
        'fewer': ([], [], []), 'blobs': (['blobs/sha256/' + sha(A)], [blob(A)], []), 'symlink': (['1/layer.tar'], [], [('1/layer.tar', '../0/layer.tar', tarfile.SYMTYPE)]),
        'symlink-in-root': (['1.tar'], [], [('1.tar', '0/layer.tar', tarfile.SYMTYPE)]), 'symlink-absolute': (['1.tar'], [], [('1.tar', '/0/layer.tar', tarfile.SYMTYPE)]),
        'symlink-out': (['1.tar'], [], [('1.tar', '../../0/layer.tar', tarfile.SYMTYPE)]), 'symlink-of-symlink': (['2.tar'], [], [('1.tar', '0/layer.tar', tarfile.SYMTYPE), ('2.tar', '1.tar', tarfile.SYMTYPE)]),
        'hard-link': (['1.tar'], [], [('1.tar', '0/layer.tar', tarfile.LNKTYPE)]), 'symlink-to-directory': (['1/layer.tar'], [], [('1', '0', tarfile.SYMTYPE)]), 'gzip': (['1.tar'], [('1.tar', gzip.compress(A, mtime=0))], []),
        'named-txt': (['x.txt'], [('x.txt', A)], []), 'in-root': (['x'], [('x', A)], [])}.items():
    row('archive/layers-' + name, docker(entry={'Layers': layers}, files=files, links=links))
row('archive/layer-twice', docker(layers=(A, A)))
row('archive/layer-twice-one-file', docker(layers=(A, A), entry={'Layers': ['0/layer.tar'] * 2}))
row('archive/layer-empty', docker(layers=(tar(),)))
row('archive/two-layers-swapped', docker(layers=(A, B), blobs=(B, A)))
C2 = js(config((A, B)))
row('archive/two-images', docker(files=[('1/layer.tar', B), ('c2.json', C2)], manifest=lambda e: [e, {'Config': 'c2.json', 'RepoTags': ['u:1'], 'Layers': ['0/layer.tar', '1/layer.tar']}]))
row('archive/one-image-twice', docker(manifest=lambda e: [e, merged(e, {'RepoTags': ['u:1']})]))
row('archive/one-name-for-two', docker(files=[('1/layer.tar', B), ('c2.json', C2)], manifest=lambda e: [e, {'Config': 'c2.json', 'RepoTags': ['t:1'], 'Layers': ['0/layer.tar', '1/layer.tar']}]))
row('archive/good-and-bad', docker(manifest=lambda e: [e, merged(e, {'Config': 'missing.json'})]))
for name, parent in {'null': None, 'odd': 'x', 'of-nothing': 'sha256:' + '0' * 64, 'number': 5}.items():
    row('archive/parent-' + name, docker(entry={'Parent': parent}))
for name, sources in {'null': None, 'empty': {}, 'full': {DIFF: desc('application/vnd.docker.image.rootfs.diff.tar.gzip', A)}, 'list': []}.items():
    row('archive/layer-sources-' + name, docker(entry={'LayerSources': sources}))
row('archive/unknown-field', docker(entry={'X': [None]}))
row('archive/lower-case', docker(manifest=lambda e: [{k.lower(): v for k, v in e.items()}]))
row('archive/upper-case', docker(manifest=lambda e: [{k.upper(): v for k, v in e.items()}]))
row('archive/field-twice', docker(manifest=lambda e: json.dumps([e]).replace('"RepoTags"', '"RepoTags": ["u:1", "u:2"], "RepoTags"').encode()))
for name, m in {'object': lambda e: e, 'empty': lambda e: [], 'of-null': lambda e: [None], 'null': lambda e: None, 'entry-and-null': lambda e: [e, None], 'text': lambda e: 'x', 'newline': lambda e: js([e]) + b'\n', 'more': lambda e: js([e]) + b'[]',
        'nul': lambda e: js([e]) + b'\0' * 100, 'bad-utf8': lambda e: js([merged(e, {'X': '@'})]).replace(b'@', b'\xff'), 'lone-surrogate': lambda e: js([merged(e, {'X': '\ud800'})]), 'bom': lambda e: b'\xef\xbb\xbf' + js([e]), 'cut': lambda e: js([e])[:-1],
        'nothing': lambda e: b'', 'large': lambda e: js([merged(e, {'X': 'y' * 3000000})])}.items():
    row('archive/manifest-' + name, docker(manifest=m))
row('archive/manifest-twice', docker(files=[('manifest.json', b'[]')]))
row('archive/manifest-first', tar(('manifest.json', js([{'Config': 'c.json', 'RepoTags': ['t:1'], 'Layers': ['l.tar']}])), ('c.json', C), ('l.tar', A)))
row('archive/manifest-with-dot', tar(('./manifest.json', js([{'Config': 'c.json', 'RepoTags': ['t:1'], 'Layers': ['l.tar']}])), ('./c.json', C), ('./l.tar', A)))
row('archive/repositories-beside', docker(files=[('repositories', js({'other': {'1': 'x'}}))]))
row('archive/repositories-broken', docker(files=[('repositories', b'{')]))
row('archive/oci-layout-beside', docker(files=[('oci-layout', b'{"imageLayoutVersion":"1.0.0"}')]))


def legacy(*images, repositories, files=()):
    """What Docker wrote before 1.10: (name, fields, layer) of every image."""
    return tar(*[(d + '/', '', tarfile.DIRTYPE) for d, *_ in images], *[x for d, v1, layer in images for x in [(d + '/VERSION', b'1.0'), (d + '/json', js(v1)), (d + '/layer.tar', layer)]], *files,
        *([] if repositories is None else [('repositories', js(repositories))]))


V1 = {'id': 'a' * 64, 'created': '2015-01-01T00:00:00Z', 'os': 'linux', 'architecture': ARCH, 'config': {'Cmd': ['x']}, 'Size': 5}
V2 = {'id': 'b' * 64, 'parent': 'a' * 64, 'created': '2015-01-02T00:00:00Z', 'os': 'linux', 'architecture': ARCH, 'container_config': {'Cmd': ['/bin/sh', '-c', 'echo <x>']}}
row('v1/one', legacy(('a' * 64, V1, A), repositories={'t': {'1': 'a' * 64}}))
row('v1/chain', legacy(('b' * 64, V2, B), ('a' * 64, V1, A), repositories={'t': {'1': 'b' * 64, '0': 'a' * 64}}))
row('v1/no-repositories', legacy(('a' * 64, V1, A), repositories=None))
row('v1/unknown-id', legacy(('a' * 64, V1, A), repositories={'t': {'1': 'c' * 64}}))
row('v1/parent-missing', legacy(('b' * 64, V2, B), repositories={'t': {'1': 'b' * 64}}))
row('v1/ring', legacy(('a' * 64, merged(V1, {'parent': 'a' * 64}), A), repositories={'t': {'1': 'a' * 64}}))
row('v1/nulls', legacy(('a' * 64, merged(V1, {'config': None, 'created': None, 'os': None, 'parent': None}), A), repositories={'t': {'1': 'a' * 64}}))
row('v1/bad-name', legacy(('a' * 64, V1, A), repositories={'T': {'1': 'a' * 64}}))
row('v1/layer-missing', tar(('a' * 64 + '/json', js(V1)), ('repositories', js({'t': {'1': 'a' * 64}}))))
row('v1/short-id', legacy(('abc', merged(V1, {'id': 'abc'}), A), repositories={'t': {'1': 'abc'}}))

# OCI layouts.

row('oci/plain', oci())
for name, n in {'tag': 'latest', 'number': '1.0', 'plus': '1.0+git', 'upper': 'Foo/Bar:1', 'odd-tag': 'x/y:1.0+git', 'space': 'a b', 'short': 't:1', 'full': 'docker.io/library/t:1', 'port': 'localhost:5000/t', 'no-tag': 'x/y',
        'digest': 'sha256:' + '0' * 64, 'at': 'x@y', 'by-digest': 'x/y@sha256:' + '0' * 64, 'empty': '', 'null': None, 'path': '/a/b', 'up': '../x', 'Tag': 'V1', 'unicode': 'ü', 'many': 'x' * 300}.items():
    row('oci/ref-' + name, oci(entry={'annotations': {REF: n}}))
    if name in ('plus', 'upper', 'odd-tag', 'space', 'tag', 'empty', 'null', 'short'):
        row('oci/name-' + name, oci(entry={'annotations': {NAME: n}}))
row('oci/name-and-ref', oci(entry={'annotations': {NAME: 'docker.io/library/t:1', REF: '1.0+git'}}))
row('oci/bad-name-good-ref', oci(entry={'annotations': {NAME: 'Foo', REF: 'u:1'}}))
row('oci/ref-number', oci(entry={'annotations': {REF: 1}}))
row('oci/annotations-list', oci(entry={'annotations': []}))
for name, a in {'null': None, 'absent': GONE, 'other': {'a': 'b'}}.items():
    row('oci/annotations-' + name, oci(entry={'annotations': a}))
for where in ('manifest', 'entry', 'index', 'conf', 'layer'):
    for name, kind in {'absent': GONE, 'null': None, 'empty': '', 'odd': 'application/x-odd', 'octets': 'application/octet-stream', 'number': 1}.items():
        row('oci/mediaType-%s-%s' % (where, name), oci(**{where: {'mediaType': kind}}))
for where in ('manifest', 'index'):
    for name, version in {'absent': GONE, 'null': None, '1': 1, '3': 3, 'text': '2', 'fraction': 2.5}.items():
        row('oci/schemaVersion-%s-%s' % (where, name), oci(**{where: {'schemaVersion': version}}))
row('oci/schemaVersion-manifest-2.0', oci(raw_manifest=lambda m: js(m).replace(b'"schemaVersion": 2', b'"schemaVersion": 2.0')))
for where in ('entry', 'conf', 'layer'):
    for name, size in {'absent': GONE, 'null': None, '0': 0, 'wrong': 5, 'more': 50000, 'negative': -1, 'text': '5', 'large': 1 << 70}.items():
        row('oci/size-%s-%s' % (where, name), oci(**{where: {'size': size}}))
    for name, digest in {'absent': GONE, 'empty': '', 'upper': 'sha256:' + sha(A).upper(), 'wrong': 'sha256:' + sha(b'x'), 'odd': 'md5:1'}.items():
        row('oci/digest-%s-%s' % (where, name), oci(**{where: {'digest': digest}}))
for name, p in {'null': None, 'empty': {}, 'os-null': {'os': None, 'architecture': ARCH}, 'architecture-only': {'architecture': ARCH}, 'os-only': {'os': 'linux'}, 'unknown': {'os': 'unknown', 'architecture': 'unknown'},
        'other': {'os': 'linux', 'architecture': 's390x'}, 'features-null': {'os': 'linux', 'architecture': ARCH, 'os.features': None, 'features': None}, 'text': 'linux/amd64', 'variant': {'os': 'linux', 'architecture': ARCH, 'variant': 'v9'}}.items():
    row('oci/platform-' + name, oci(entry={'platform': p}))
for name, m in {'null': None, 'absent': GONE, 'empty': [], 'of-null': [None], 'object': {}}.items():
    row('oci/manifests-' + name, oci(index={'manifests': m}))
row('oci/layers-of-null', oci(manifest={'layers': [None]}))
row('oci/layers-text', oci(manifest={'layers': 'x'}))
row('oci/layers-more', oci(manifest={'layers': [desc(LAYER, A)] * 2}))
row('oci/layers-fewer', oci(manifest={'layers': []}))
row('oci/config-null', oci(manifest={'config': None}))
row('oci/config-absent', oci(manifest={'config': GONE}))
row('oci/config-is-text', oci(b'hello'))
row('oci/layer-missing', oci(without=(A,)))
row('oci/urls-null', oci(layer={'urls': None, 'annotations': None}))
row('oci/urls', oci(layer={'urls': ['https://127.0.0.1:1/x']}))
row('oci/data', oci(conf={'data': 'aGVsbG8='}))
for name, kind in {'gzip-but-plain': LAYER + '+gzip', 'docker': 'application/vnd.docker.image.rootfs.diff.tar', 'docker-gzip': 'application/vnd.docker.image.rootfs.diff.tar.gzip', 'nondistributable': MT + 'layer.nondistributable.v1.tar',
        'nondistributable-gzip': MT + 'layer.nondistributable.v1.tar+gzip', 'foreign': 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip', 'encrypted': LAYER + '+encrypted', 'unknown-suffix': LAYER + '+lz4', 'parameter': LAYER + '; a=b',
        'tar': 'application/x-tar', 'upper': LAYER.upper(), 'squashfs': 'application/vnd.example.squashfs'}.items():
    row('oci/layer-type-' + name, oci(layer={'mediaType': kind}))
row('oci/nondistributable-absent', oci(layer={'mediaType': MT + 'layer.nondistributable.v1.tar', 'urls': ['https://127.0.0.1:1/x']}, without=(A,)))
row('oci/docker-manifest', oci(manifest={'mediaType': 'application/vnd.docker.distribution.manifest.v2+json'}, entry={'mediaType': 'application/vnd.docker.distribution.manifest.v2+json'},
    conf={'mediaType': 'application/vnd.docker.container.image.v1+json'}, layer={'mediaType': 'application/vnd.docker.image.rootfs.diff.tar'}))
row('oci/docker-manifest-oci-entry', oci(manifest={'mediaType': 'application/vnd.docker.distribution.manifest.v2+json'}))
row('oci/manifest-and-index', oci(manifest={'manifests': [desc(MANIFEST, b'x')]}))
row('oci/manifest-and-empty-index', oci(manifest={'manifests': []}))
row('oci/manifest-and-null-index', oci(manifest={'manifests': None}))
row('oci/manifest-and-Index', oci(manifest={'Manifests': [desc(MANIFEST, b'x')]}))
row('oci/index-with-layers', oci(index={'layers': [desc(LAYER, A)]}))
row('oci/index-with-config', oci(index={'config': desc(CONFIG, C)}))
row('oci/index-calls-itself-manifest', oci(index={'mediaType': MANIFEST}))
row('oci/entry-calls-manifest-index', oci(entry={'mediaType': INDEX}))
row('oci/manifest-calls-itself-index', oci(manifest={'mediaType': INDEX}))


def nested(entries, blobs, depth=1, kind=INDEX, **over):
    """A layout whose one entry is an index of `entries`."""
    for _ in range(depth):
        inner = js(merged({'schemaVersion': 2, 'mediaType': kind, 'manifests': entries}, over))
        blobs = [*blobs, inner]
        entries = [desc(kind, inner)]
    entries[0]['annotations'] = {NAME: 'docker.io/library/t:1'}
    return oci(index={'manifests': entries}, blobs=blobs)


M, BLOBS = image()
M2, BLOBS2 = image('s390x', (B,))
HERE, THERE = {'os': 'linux', 'architecture': ARCH}, {'os': 'linux', 'architecture': 's390x'}
STATEMENT = js({'schemaVersion': 2, 'mediaType': MANIFEST, 'config': desc(CONFIG, b'{}'), 'layers': [desc('application/vnd.in-toto+json', b'{"a":1}')]})
ATTESTS = desc(MANIFEST, STATEMENT, annotations={'vnd.docker.reference.type': 'attestation-manifest', 'vnd.docker.reference.digest': 'sha256:' + sha(M)}, platform={'os': 'unknown', 'architecture': 'unknown'})
CHART = js({'schemaVersion': 2, 'mediaType': MANIFEST, 'config': desc('application/vnd.cncf.helm.config.v1+json', b'{"name":"x"}'), 'layers': [desc('application/vnd.cncf.helm.chart.content.v1.tar+gzip', b'chart')]})
SIGNATURE = js({'schemaVersion': 2, 'mediaType': MANIFEST, 'artifactType': 'application/x-signature', 'config': desc('application/vnd.oci.empty.v1+json', b'{}'), 'layers': [desc('application/vnd.oci.empty.v1+json', b'{}')],
    'subject': desc(MANIFEST, M)})
EXTRA = [STATEMENT, b'{}', b'{"a":1}', CHART, b'{"name":"x"}', b'chart', SIGNATURE]
row('oci/nested', nested([desc(MANIFEST, M)], BLOBS))
row('oci/nested-docker-list', nested([desc(MANIFEST, M, platform=HERE)], BLOBS, kind='application/vnd.docker.distribution.manifest.list.v2+json'))
row('oci/nested-twice', nested([desc(MANIFEST, M)], BLOBS, 2))
row('oci/nested-6-times', nested([desc(MANIFEST, M)], BLOBS, 6))
row('oci/nested-two-platforms', nested([desc(MANIFEST, M2, platform=THERE), desc(MANIFEST, M, platform=HERE)], BLOBS + BLOBS2))
row('oci/nested-other-absent', nested([desc(MANIFEST, M2, platform=THERE), desc(MANIFEST, M, platform=HERE)], BLOBS))
row('oci/nested-only-other', nested([desc(MANIFEST, M2, platform=THERE)], BLOBS2))
row('oci/nested-only-other-two', nested([desc(MANIFEST, M2, platform=THERE), desc(MANIFEST, image('ppc64le')[0], platform={'os': 'linux', 'architecture': 'ppc64le'})], BLOBS2 + image('ppc64le')[1]))
row('oci/nested-no-platforms', nested([desc(MANIFEST, M2), desc(MANIFEST, M)], BLOBS + BLOBS2))
row('oci/nested-null-platforms', nested([desc(MANIFEST, M2, platform=None), desc(MANIFEST, M, platform=None)], BLOBS + BLOBS2))
row('oci/nested-attestation', nested([desc(MANIFEST, M, platform=HERE), ATTESTS], BLOBS + EXTRA))
row('oci/nested-attestation-first', nested([ATTESTS, desc(MANIFEST, M, platform=HERE)], BLOBS + EXTRA))
row('oci/nested-attestation-absent', nested([desc(MANIFEST, M, platform=HERE), ATTESTS], BLOBS))
row('oci/nested-chart', nested([desc(MANIFEST, M, platform=HERE), desc(MANIFEST, CHART)], BLOBS + EXTRA))
row('oci/nested-unknown-kind', nested([desc('application/x-odd', b'odd'), desc(MANIFEST, M, platform=HERE)], BLOBS + [b'odd']))
row('oci/nested-unknown-digest', nested([desc(MANIFEST, b'x', digest='md5:1', platform=THERE), desc(MANIFEST, M, platform=HERE)], BLOBS))
row('oci/nested-empty', nested([], []))
row('oci/nested-null', nested(None, []))
row('oci/nested-no-mediaType', nested([desc(MANIFEST, M, platform=HERE)], BLOBS, mediaType=GONE))
T = {'annotations': {NAME: 'docker.io/library/t:1'}}
U = {'annotations': {NAME: 'docker.io/library/u:1'}}
for name, entries in {'two-names': [desc(MANIFEST, M, **T), desc(MANIFEST, M, **U)], 'twice': [desc(MANIFEST, M, **T)] * 2, 'two-platforms': [desc(MANIFEST, M2, platform=THERE, **T), desc(MANIFEST, M, platform=HERE, **T)],
        'two-unnamed': [desc(MANIFEST, M), desc(MANIFEST, M2)], 'two-unnamed-platforms': [desc(MANIFEST, M2, platform=THERE), desc(MANIFEST, M, platform=HERE)], 'two-images': [desc(MANIFEST, M, **T), desc(MANIFEST, M2, **U)],
        'two-tags': [desc(MANIFEST, M, annotations={REF: 'a'}), desc(MANIFEST, M2, annotations={REF: 'b'})], 'attestation': [desc(MANIFEST, M, **T), ATTESTS], 'chart': [desc(MANIFEST, M, **T), desc(MANIFEST, CHART)],
        'chart-first': [desc(MANIFEST, CHART), desc(MANIFEST, M, **T)], 'chart-named': [desc(MANIFEST, M, **T), desc(MANIFEST, CHART, **U)], 'chart-alone': [desc(MANIFEST, CHART, **T)], 'attestation-alone': [ATTESTS],
        'signature': [desc(MANIFEST, M, **T), desc(MANIFEST, SIGNATURE)], 'signature-artifactType': [desc(MANIFEST, M, **T), desc(MANIFEST, SIGNATURE, artifactType='application/x-signature')],
        'signature-absent': [desc(MANIFEST, M, **T), desc(MANIFEST, js({'x': 1}), artifactType='application/x-signature')], 'unknown-kind': [desc(MANIFEST, M, **T), desc('application/x-odd', b'odd')],
        'unknown-kind-first': [desc('application/x-odd', b'odd'), desc(MANIFEST, M, **T)], 'unknown-kind-named': [desc('application/x-odd', b'odd', **U), desc(MANIFEST, M, **T)],
        'unknown-digest': [desc(MANIFEST, M, **T), desc('application/x-odd', b'odd', digest='md5:1')], 'null-beside': [desc(MANIFEST, M, **T), None], 'absent-beside': [desc(MANIFEST, M, **T), desc(MANIFEST, M2, **U)][:1] + [desc(MANIFEST, b'gone')]}.items():
    row('oci/index-' + name, oci(index={'manifests': entries}, blobs=BLOBS + BLOBS2 + EXTRA + [b'odd']))
row('oci/index-of-layer', oci(index=lambda e: {'manifests': [e, desc(LAYER, A)]}))
row('oci/index-large', oci(index={'annotations': {'x': 'y' * 3000000}}))
row('oci/index-upper-case', oci(raw_index=lambda i: js(i).replace(b'"manifests"', b'"MANIFESTS"').replace(b'"digest"', b'"Digest"')))
row('oci/index-twice', oci(raw_index=lambda i: js(i)[:-1] + b', "manifests": [{}]}'))
row('oci/index-twice-null', oci(raw_index=lambda i: js(i)[:-1] + b', "manifests": null}'))
row('oci/index-newline', oci(raw_index=lambda i: js(i) + b'\n'))
row('oci/index-more-after', oci(raw_index=lambda i: js(i) + b'{}'))
row('oci/index-bad-utf8', oci(index={'annotations': {'x': '@'}}, raw_index=lambda i: js(i).replace(b'@', b'\xff')))
row('oci/index-lone-surrogate', oci(index={'annotations': {'x': '\ud800'}}))
row('oci/index-is-manifest', oci(raw_index=lambda i: M, blobs=BLOBS))
row('oci/manifest-upper-case', oci(raw_manifest=lambda m: js(m).replace(b'"layers"', b'"LAYERS"').replace(b'"config"', b'"Config"')))
row('oci/manifest-twice', oci(raw_manifest=lambda m: js(m)[:-1] + b', "layers": [{"size": %d}]}' % len(A)))
row('oci/manifest-newline', oci(raw_manifest=lambda m: js(m) + b'\n'))
row('oci/manifest-more-after', oci(raw_manifest=lambda m: js(m) + b'{}'))
row('oci/manifest-bad-utf8', oci(manifest={'annotations': {'x': '@'}}, raw_manifest=lambda m: js(m).replace(b'@', b'\xff')))
row('oci/manifest-annotations-number', oci(manifest={'annotations': {'x': 1}}))
row('oci/manifest-annotations-null', oci(manifest={'annotations': {'x': None}}))
row('oci/manifest-unknown', oci(manifest={'x': [None], 'subject': None, 'artifactType': None}))
row('oci/subject', oci(manifest={'subject': desc(MANIFEST, b'x')}))
row('oci/index-subject', oci(index={'subject': desc(MANIFEST, b'x'), 'artifactType': 'x'}))
for name, layout in {'absent': None, 'empty': b'{}', 'null': b'null', 'nothing': b'', '1.0.1': {'imageLayoutVersion': '1.0.1'}, '1': {'imageLayoutVersion': '1'}, '2': {'imageLayoutVersion': '2.0.0'}, 'number': {'imageLayoutVersion': 1},
        'version-null': {'imageLayoutVersion': None}, 'upper-case': {'IMAGELAYOUTVERSION': '1.0.0'}, 'more-after': b'{"imageLayoutVersion":"1.0.0"}{}', 'newline': b'{"imageLayoutVersion":"1.0.0"}\n', 'list': b'[]'}.items():
    row('oci/layout-' + name, oci(layout=layout))
row('oci/with-dots', oci(prefix='./'))
row('oci/extra-files', oci(files=[('README', b'x'), ('blobs/sha256/README', b'x'), ('blobs/md5/1', b'x')]))
row('oci/config-no-os', oci(config(os=GONE)))
row('oci/config-no-architecture', oci(config(architecture=GONE)))
row('oci/config-null-label', oci(config(config={'Labels': {'a': None}})))
row('oci/config-cmd-text', oci(config(config={'Cmd': 'x'})))
row('oci/config-history-long', oci(config(history=[{}, {}, {}])))
row('oci/config-no-rootfs', oci(config(rootfs=GONE)))
row('oci/manifest-json-beside', oci(files=[(sha(C) + '.json', C), ('manifest.json', js([{'Config': 'blobs/sha256/' + sha(C), 'RepoTags': ['u:1'], 'Layers': ['blobs/sha256/' + sha(A)]}]))]))
row('oci/manifest-json-broken', oci(files=[('manifest.json', b'{')]))
row('oci/manifest-json-bad-tag', oci(files=[('manifest.json', js([{'Config': 'blobs/sha256/' + sha(C), 'RepoTags': ['Bad:1'], 'Layers': ['blobs/sha256/' + sha(A)]}]))]))
row('oci/manifest-json-other', oci(files=[('c2.json', C2), ('1.tar', B), ('manifest.json', js([{'Config': 'c2.json', 'RepoTags': ['u:1'], 'Layers': ['blobs/sha256/' + sha(A), '1.tar']}]))]))
