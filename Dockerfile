# Labeling for a Space or any other host: docs/labeling.md. Serves port 7860 and keeps the labels in /data.
#   docker build -t labeling . && docker run -p 7860:7860 -v labels:/data -e LABEL_URL=https://label.example.org labeling
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 labeler && mkdir /data && chown labeler /data
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir ".[label]"
USER labeler
ENV HF_HOME=/tmp/hub RECIPE=sandbox
VOLUME /data
EXPOSE 7860
# exec: the server gets the signals. LABEL_URL is the address that labelers open; with https:// cookies need TLS.
CMD ["sh", "-c", "exec python recipes/label.py --run /data --recipe recipes/$RECIPE --host 0.0.0.0 --port 7860 ${LABEL_URL:+--url $LABEL_URL}"]
